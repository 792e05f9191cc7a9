# Table 4 of arXiv:2103.13080, SSD-MobileNetV2 x1.0 SB.
_base_ = '../ssd_sb_voc.py'
