"""From a config with a pipeline to one whose pictures live on the device."""

from mmengine.config import Config, ConfigDict

from sb_mm.errors import UserInputError

_LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
_READING = ('LoadImageFromFile', 'Resize', 'CenterCrop')
# Arguments of the preprocessor that ClsDataPreprocessor shares.
_SHARED = ('type', 'mean', 'std', 'to_rgb', 'num_classes')


def use_device_data(cfg: Config, channels_last: bool = False) -> None:
    """Let a classifier's config keep its pictures on the device, in place.

    Wraps every data set in ``sb_mm.IndexedPictures``, and hands padding and
    flip of the training pipeline, mean and std to
    ``sb_mm.OnDeviceAugmentation``: the pictures have the same distribution.

    Args:
        cfg: Config for mmpretrain, with small pictures of one size.
        channels_last: See ``OnDeviceAugmentation``.

    Raises:
        UserInputError: If the config does something with its pictures that
            the preprocessor cannot do.
    """
    given = cfg.get('data_preprocessor') or cfg.model.data_preprocessor
    if given.get('type', 'ClsDataPreprocessor') != 'ClsDataPreprocessor':
        raise UserInputError(
            "Only mmpretrain's ClsDataPreprocessor can be exchanged for "
            f'OnDeviceAugmentation, but the config has {given.type}.'
        )
    unknown = [name for name in given if name not in _SHARED]
    if unknown or 'mean' not in given or cfg.model.get('train_cfg'):
        raise UserInputError(
            'OnDeviceAugmentation needs a data_preprocessor with mean and '
            'std, without batch augmentation and with nothing else than '
            f'to_rgb and num_classes, but got {dict(given)}.'
        )
    preprocessor = ConfigDict(
        given, type='sb_mm.OnDeviceAugmentation', channels_last=channels_last
    )
    preprocessor.update(_augmentation(cfg.train_dataloader.dataset))
    cfg.model.data_preprocessor = preprocessor
    cfg.pop('data_preprocessor', None)
    for name in _LOADERS:
        if cfg.get(name):
            _wrap(cfg[name])
    if cfg.get('val_cfg'):
        cfg.val_cfg.type = 'sb_mm.BatchedValLoop'


def has_device_data(cfg: Config) -> bool:
    """Whether :func:`use_device_data` was applied to a config."""
    given = cfg.model.get('data_preprocessor') or {}
    return given.get('type') == 'sb_mm.OnDeviceAugmentation'


def _wrap(loader: ConfigDict) -> None:
    dataset = loader.dataset
    pipeline = dataset.get('pipeline') or []
    dataset.pipeline = [t for t in pipeline if t.type in _READING]
    loader.dataset = ConfigDict(type='sb_mm.IndexedPictures', dataset=dataset)
    loader.num_workers = 0
    loader.persistent_workers = False
    loader.collate_fn = ConfigDict(type='sb_mm.whole_batch')


def _augmentation(dataset: ConfigDict) -> dict:
    """Read crop and flip from a training pipeline."""
    arguments: dict = {}
    for transform in dataset.get('pipeline') or []:
        options = {k: v for k, v in transform.items() if k != 'type'}
        if _is_crop(transform.type, options):
            arguments.update(options)
        elif _is_flip(transform.type, options):
            arguments['flip_prob'] = options['prob']
        elif transform.type not in (*_READING, 'PackInputs'):
            raise UserInputError(
                'OnDeviceAugmentation can take the place of RandomCrop with '
                'crop_size and padding, and of horizontal RandomFlip, but the '
                f'pipeline has {dict(transform)}: leave the data in the '
                'pipeline of the host.'
            )
    return arguments


def _is_crop(kind: str, options: dict) -> bool:
    sizes = set(options) <= {'crop_size', 'padding'}
    return kind == 'RandomCrop' and sizes and 'crop_size' in options


def _is_flip(kind: str, options: dict) -> bool:
    sideways = options.get('direction', 'horizontal') == 'horizontal'
    return kind == 'RandomFlip' and sideways and 'prob' in options
