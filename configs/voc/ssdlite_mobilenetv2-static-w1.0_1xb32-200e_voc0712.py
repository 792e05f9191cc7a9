# Table 4 of arXiv:2103.13080, SSD-MobileNetV2 x1.0 static.
_base_ = '../ssd_sb_voc.py'

model = dict(backbone=dict(type='sb_mm.AttentionMobileNetV2'))
