# Table 4 of arXiv:2103.13080, SSD-MobileNetV2 x1.0 SE.
_base_ = '../ssd_sb_voc.py'

model = dict(
    backbone=dict(
        type='sb_mm.SEMobileNetV2',
        attention_layers=('expand', 'depthwise', 'project'),
    ),
)
