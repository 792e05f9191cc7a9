# Table 4 of arXiv:2103.13080, SSD-MobileNetV2 x1.0 SB: the main job.
_base_ = [
    './_base_/models/ssdlite_mobilenetv2.py',
    './_base_/datasets/voc0712.py',
    './_base_/schedules/ssdlite_200e.py',
    './_base_/runtime/default_runtime.py',
]

model = dict(backbone=dict(type='sb_mm.SBMobileNetV2'))
