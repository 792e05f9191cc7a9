# Table 4 of arXiv:2103.13080, SSD-MobileNetV2 x0.5 SE.
_base_ = '../ssd_sb_voc.py'

# Level 1 has 6 * make_divisible(96 * 0.5) = 288 channels.
model = dict(
    backbone=dict(
        type='sb_mm.SEMobileNetV2',
        attention_layers=('expand', 'depthwise', 'project'),
        widen_factor=0.5,
    ),
    neck=dict(in_channels=(288, 1280)),
    bbox_head=dict(in_channels=(288, 1280, 512, 256, 256, 64)),
)
