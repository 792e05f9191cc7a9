# SB-SSDLite on your own images with annotations in COCO's format, for which
# arXiv:2103.13080 has no numbers: change these four lines, nothing else.
# Expected below data_root: the two files, and images/<file_name>.
data_root = 'data/my_coco/'
train_annotations = 'annotations/train.json'
val_annotations = 'annotations/val.json'
classes = ('cat', 'dog')  # in the order of the files' categories

# To start from published weights: '../voc/ssd_sb_finetune.py'.
_base_ = '../ssd_sb_voc.py'

model = dict(bbox_head=dict(num_classes=len(classes)))

coco = dict(
    type='CocoDataset',
    data_root=data_root,
    data_prefix=dict(img='images/'),
    metainfo=dict(classes=classes),
)
train_dataloader = dict(
    dataset=dict(
        _delete_=True,
        ann_file=train_annotations,
        filter_cfg=dict(filter_empty_gt=True),
        pipeline=_base_.train_pipeline,
        **coco,
    )
)
val_dataloader = dict(
    dataset=dict(
        _delete_=True,
        ann_file=val_annotations,
        test_mode=True,
        pipeline=_base_.test_pipeline,
        **coco,
    )
)
test_dataloader = val_dataloader

val_evaluator = dict(
    _delete_=True,
    type='CocoMetric',
    ann_file=data_root + val_annotations,
    metric='bbox',
)
test_evaluator = val_evaluator
default_hooks = dict(checkpoint=dict(save_best='coco/bbox_mAP'))
