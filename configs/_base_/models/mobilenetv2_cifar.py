# MobileNetV2 for 32x32 pixels. Without attention; 2,294,682 parameters at
# width 1.0 with 10 classes.
model = dict(
    type='ImageClassifier',
    backbone=dict(type='sb_mm.AttentionMobileNetV2CIFAR', widen_factor=1.0),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=10,
        in_channels=1280,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
    ),
)
