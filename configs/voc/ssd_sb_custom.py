# SB-SSDLite on your own images: change these two lines, nothing else.
# Expected below data_root, in VOC's format:
#   JPEGImages/<id>.jpg (or .jpeg, .png, .bmp, .webp)    Annotations/<id>.xml
#   ImageSets/Main/train.txt and val.txt    one <id> a line
data_root = 'data/my_devkit/'
classes = ('cat', 'dog')

# To start from published weights: './ssd_sb_finetune.py'.
_base_ = '../ssd_sb_voc.py'

model = dict(bbox_head=dict(num_classes=len(classes)))

devkit = dict(
    type='sb_mm.VOCDevkitDataset',
    data_root=data_root,
    data_prefix=dict(sub_data_root=''),
    metainfo=dict(classes=classes),
)
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        ann_file='ImageSets/Main/train.txt',
        filter_cfg=dict(filter_empty_gt=True),
        pipeline=_base_.train_pipeline,
        **devkit,
    )
)
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        ann_file='ImageSets/Main/val.txt',
        test_mode=True,
        pipeline=_base_.test_pipeline,
        **devkit,
    )
)
test_dataloader = val_dataloader
