# CIFAR-10: the official pickles, which are downloaded if they are not there.
data_root = 'data/cifar10/'
dataset_type = 'CIFAR10'

data_preprocessor = dict(
    num_classes=10,
    mean=[125.307, 122.961, 113.8575],  # RGB
    std=[51.5865, 50.847, 51.255],
    to_rgb=False,  # the images are RGB already
)

train_pipeline = [
    dict(type='RandomCrop', crop_size=32, padding=2),  # from 36x36 pixels
    dict(type='RandomFlip', prob=0.5, direction='horizontal'),
    dict(type='PackInputs'),
]
test_pipeline = [dict(type='PackInputs')]

train_dataloader = dict(
    batch_size=128,
    num_workers=2,
    persistent_workers=True,
    pin_memory=True,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        split='train',
        pipeline=train_pipeline,
    ),
)
val_dataloader = dict(
    batch_size=128,
    num_workers=2,
    persistent_workers=True,
    pin_memory=True,
    collate_fn=dict(type='default_collate'),
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        split='test',
        pipeline=test_pipeline,
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(type='Accuracy', topk=(1,))
test_evaluator = val_evaluator
