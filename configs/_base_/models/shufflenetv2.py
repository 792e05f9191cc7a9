# ShuffleNetV2 for 224x224 pixels. Without attention; 1,366,792 parameters at
# width 0.5 with 1,000 classes.
model = dict(
    type='ImageClassifier',
    backbone=dict(type='sb_mm.AttentionShuffleNetV2', widen_factor=0.5),
    neck=dict(type='GlobalAveragePooling'),
    head=dict(
        type='LinearClsHead',
        num_classes=1000,
        in_channels=1024,  # 2048 at width 2.0
        loss=dict(type='CrossEntropyLoss', loss_weight=1.0),
        topk=(1, 5),
    ),
)
