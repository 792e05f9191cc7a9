# CIFAR-10 on the device: the loader draws indices, and the batches are cut,
# cropped, flipped and normalised where the network is. The same distribution
# as cifar10.py's.
data_root = 'data/cifar10/'
dataset_type = 'CIFAR10'

data_preprocessor = dict(
    type='sb_mm.OnDeviceAugmentation',
    mean=[125.307, 122.961, 113.8575],  # RGB
    std=[51.5865, 50.847, 51.255],
    padding=2,
    crop_size=32,
    flip_prob=0.5,
)

train_dataloader = dict(
    batch_size=128,
    num_workers=0,
    persistent_workers=False,
    pin_memory=False,
    sampler=dict(type='DefaultSampler', shuffle=True),
    collate_fn=dict(type='sb_mm.whole_batch'),
    dataset=dict(
        type='sb_mm.IndexedImages',
        dataset=dict(
            type=dataset_type, data_root=data_root, split='train', pipeline=[]
        ),
    ),
)
val_dataloader = dict(
    batch_size=500,
    num_workers=0,
    persistent_workers=False,
    pin_memory=False,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='sb_mm.whole_batch'),
    dataset=dict(
        type='sb_mm.IndexedImages',
        dataset=dict(
            type=dataset_type, data_root=data_root, split='test', pipeline=[]
        ),
    ),
)
test_dataloader = val_dataloader

val_evaluator = dict(type='Accuracy', topk=(1,))
test_evaluator = val_evaluator
