# SSDLite on MobileNetV2, Section 5.2 of arXiv:2103.13080. Without attention;
# at width 1.0 with 20 classes it has 3,388,228 parameters.
model = dict(
    type='SingleStageDetector',
    data_preprocessor=dict(
        type='DetDataPreprocessor',
        mean=[127, 127, 127],  # RGB
        std=[128, 128, 128],
        bgr_to_rgb=True,
    ),
    backbone=dict(
        type='sb_mm.AttentionMobileNetV2',
        widen_factor=1.0,
        # Level 1 (19x19) is the output of the expand convolution of the
        # 160-channel stage, level 2 (10x10) that of the last convolution.
        expand_indices=(5,),
        out_indices=(7,),
    ),
    neck=dict(
        type='sb_mm.SSDLiteNeck',
        # 6 * make_divisible(96 * widen_factor) and 1280.
        in_channels=(576, 1280),
        out_channels=(512, 256, 256, 64),
        hidden_channels=(256, 128, 128, 64),
    ),
    bbox_head=dict(
        type='sb_mm.SSDLiteHead',
        num_classes=20,
        in_channels=(576, 1280, 512, 256, 256, 64),
        anchor_generator=dict(
            type='sb_mm.SSDLitePriorGenerator',
            scale_major=False,
            input_size=300,  # pixels, as are the following
            strides=[16, 32, 64, 100, 150, 300],
            min_sizes=[60, 105, 150, 195, 240, 285],
            max_sizes=[105, 150, 195, 240, 285, 330],
            ratios=[[2, 3]] * 6,
        ),
        bbox_coder=dict(
            type='DeltaXYWHBBoxCoder',
            clip_border=False,  # the head does, after the suppression
            target_means=[0.0, 0.0, 0.0, 0.0],
            target_stds=[0.1, 0.1, 0.2, 0.2],
        ),
    ),
    train_cfg=dict(
        assigner=dict(
            type='MaxIoUAssigner',
            pos_iou_thr=0.5,
            neg_iou_thr=0.5,
            min_pos_iou=0.0,
            ignore_iof_thr=-1,
            gt_max_assign_all=False,
        ),
        sampler=dict(type='PseudoSampler'),
        smoothl1_beta=1.0,
        allowed_border=-1,
        pos_weight=-1,
        neg_pos_ratio=3,
        debug=False,
    ),
    test_cfg=dict(
        nms_pre=60000,  # 3,000 priors x 20 classes: keeps all
        score_thr=0.01,
        candidates_per_class=200,
        nms=dict(type='nms', iou_threshold=0.45),
        min_bbox_size=0,
        max_per_img=4000,  # 200 x 20 classes: keeps all
    ),
)
