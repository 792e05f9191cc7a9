# CIFAR-10: the official pickles, which are downloaded if they are not there.
# While it trains, all images are where the network is: the loaders draw
# indices, and the batches are cut, cropped, flipped and normalised there.
data_root = 'data/cifar10/'
dataset_type = 'CIFAR10'

data_preprocessor = dict(
    type='sb_mm.OnDeviceAugmentation',
    mean=[125.307, 122.961, 113.8575],  # RGB, as the images are
    std=[51.5865, 50.847, 51.255],
    padding=2,  # crops out of 36x36 pixels
    crop_size=32,
    flip_prob=0.5,
)
# Else a resume draws the crops of the first epochs again, and several
# processes draw the same ones.
custom_hooks = [dict(type='sb_mm.EpochSeedHook')]

train_dataloader = dict(
    batch_size=128,
    num_workers=0,
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
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='sb_mm.whole_batch'),
    dataset=dict(
        type='sb_mm.IndexedImages',
        dataset=dict(
            type=dataset_type, data_root=data_root, split='test', pipeline=[]
        ),
    ),
)
# The host's form: what exports, infers and draws reads single images.
test_dataloader = dict(
    batch_size=128,
    num_workers=2,
    sampler=dict(type='DefaultSampler', shuffle=False),
    collate_fn=dict(type='default_collate'),
    dataset=dict(
        type=dataset_type,
        data_root=data_root,
        split='test',
        pipeline=[dict(type='PackInputs')],
    ),
)

val_evaluator = dict(type='Accuracy', topk=(1,))
test_evaluator = val_evaluator
