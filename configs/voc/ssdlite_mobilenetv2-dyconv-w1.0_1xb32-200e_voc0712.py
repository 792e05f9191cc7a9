# DyConv x1.0: not in Table 4 of arXiv:2103.13080, same recipe.
_base_ = '../ssd_sb_voc.py'

model = dict(backbone=dict(type='sb_mm.DyConvMobileNetV2'))
