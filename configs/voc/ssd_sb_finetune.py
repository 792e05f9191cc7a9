# SB-SSDLite x1.0 from a published MobileNetV2, for which arXiv:2103.13080 has
# no numbers. The file is torchvision's or timm's, through
# tools/convert_weights.py: see docs/fine_tune.md.
pretrained = 'checkpoints/mobilenet_v2.pth'

_base_ = '../ssd_sb_voc.py'

model = dict(
    # What the published weights are used to.
    data_preprocessor=dict(
        mean=[123.675, 116.28, 103.53],  # RGB
        std=[58.395, 57.12, 57.375],
    ),
    backbone=dict(
        lambda_init=0.0,  # starts as the published network exactly
        init_cfg=dict(
            type='Pretrained', prefix='backbone.', checkpoint=pretrained
        ),
    ),
)

train_cfg = dict(max_epochs=50)
optim_wrapper = dict(
    paramwise_cfg=dict(
        custom_keys={
            # MMEngine takes the longest key that a name has. The attention
            # is as new as the head.
            '.attention.': dict(lr_mult=1.0),
            'backbone.': dict(lr_mult=0.1),
        }
    )
)
param_scheduler = [
    # One epoch, of however many images.
    dict(
        type='LinearLR',
        start_factor=0.001,
        end=1,
        by_epoch=True,
        convert_to_iter_based=True,
    ),
    dict(type='CosineAnnealingLR', eta_min=0.0, by_epoch=True),
]
