# MobileNetV2 for 224x224 pixels. Without attention; 3,504,872 parameters at
# width 1.0 with 1,000 classes.
model = dict(
    type='ImageClassifier',
    backbone=dict(type='sb_mm.AttentionMobileNetV2', widen_factor=1.0),
    neck=dict(type='sb_mm.AveragePoolDropout', dropout=0.2),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=1280,
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        topk=(1, 5),
    ),
)
