"""From a config with a pipeline to one whose images live on the device."""

from mmengine.config import Config, ConfigDict

from sb_mm.errors import UserInputError

_LOADERS = ('train_dataloader', 'val_dataloader', 'test_dataloader')
_READING = ('LoadImageFromFile', 'Resize', 'CenterCrop')
# Arguments of the preprocessor that ClsDataPreprocessor shares.
_SHARED = ('type', 'mean', 'std', 'to_rgb', 'num_classes')


def use_device_data(cfg: Config, channels_last: bool = False) -> None:
    """Let a classifier's config keep its images on the device, in place.

    Wraps every dataset in ``sb_mm.IndexedImages``, and hands padding and
    flip of the training pipeline, mean and std to
    ``sb_mm.OnDeviceAugmentation``: the images have the same distribution.

    Args:
        cfg: Config for mmpretrain, with small images of one size.
        channels_last: See ``OnDeviceAugmentation``.

    Raises:
        UserInputError: If the config does something with its images that
            the preprocessor cannot do; it is left as it was.
    """
    # MMEngine's order: the top level is what a model without one gets.
    given = cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor')
    preprocessor = _preprocessor(given or ConfigDict(), cfg, channels_last)
    loaders = [cfg[name] for name in _LOADERS if cfg.get(name)]
    for loader in loaders:
        if loader is not cfg.train_dataloader:
            _check_held_out(loader.dataset)
    cfg.model.data_preprocessor = preprocessor
    cfg.pop('data_preprocessor', None)
    for loader in loaders:
        _wrap(loader)
    if cfg.get('val_cfg') is not None:
        cfg.val_cfg.type = 'sb_mm.BatchedValLoop'


def has_device_data(cfg: Config) -> bool:
    """Return whether :func:`use_device_data` was applied to a config."""
    given = cfg.model.get('data_preprocessor') or {}
    return given.get('type') == 'sb_mm.OnDeviceAugmentation'


def _preprocessor(
    given: ConfigDict, cfg: Config, channels_last: bool
) -> ConfigDict:
    """Return what stands for the ``given`` preprocessor."""
    if given.get('type', 'ClsDataPreprocessor') != 'ClsDataPreprocessor':
        raise UserInputError(
            "Only mmpretrain's ClsDataPreprocessor can be exchanged for "
            f'OnDeviceAugmentation, but the config has {given.type}.'
        )
    unknown = [name for name in given if name not in _SHARED]
    unknown += [name for name in ('mean', 'std') if name not in given]
    if unknown or cfg.model.get('train_cfg'):
        raise UserInputError(
            'OnDeviceAugmentation needs a data_preprocessor with mean and '
            'std, without batch augmentation and with nothing else than '
            f'to_rgb and num_classes, but got {dict(given)}.'
        )
    preprocessor = ConfigDict(
        given, type='sb_mm.OnDeviceAugmentation', channels_last=channels_last
    )
    preprocessor.update(_augmentation(cfg.train_dataloader.dataset))
    return preprocessor


def _wrap(loader: ConfigDict) -> None:
    dataset = loader.dataset
    pipeline = dataset.get('pipeline') or []
    dataset.pipeline = [t for t in pipeline if t.type in _READING]
    loader.dataset = ConfigDict(type='sb_mm.IndexedImages', dataset=dataset)
    loader.num_workers = 0
    loader.persistent_workers = False
    # Pinning would copy all images for each batch.
    loader.pin_memory = False
    loader.collate_fn = ConfigDict(type='sb_mm.whole_batch')


def _check_held_out(dataset: ConfigDict) -> None:
    """Refuse what validation would silently lose."""
    if arguments := _augmentation(dataset):
        raise UserInputError(
            'OnDeviceAugmentation neither crops nor flips outside of '
            'training, but a pipeline of validation or test does '
            f'({arguments}): leave that out.'
        )


def _augmentation(dataset: ConfigDict) -> dict:
    """Read crop and flip from a pipeline."""
    _check_single(dataset)
    arguments: dict = {}
    for transform in dataset.get('pipeline') or []:
        options = {k: v for k, v in transform.items() if k != 'type'}
        found = _arguments(transform.type, options)
        # The order matters but to a crop and a flip, each of them once.
        late = transform.type in _READING and arguments
        if found is None or late or set(found) & set(arguments):
            raise UserInputError(
                'OnDeviceAugmentation can take the place of one RandomCrop '
                'with whole numbers for crop_size and padding, and of one '
                'horizontal RandomFlip, behind all other transforms, but the '
                f'pipeline has {dict(transform)}: leave the data in the '
                'pipeline of the host.'
            )
        arguments.update(found)
    return arguments


def _check_single(dataset: ConfigDict) -> None:
    if 'dataset' in dataset or 'datasets' in dataset:
        raise UserInputError(
            f'The dataset {dataset.type} wraps others, whose pipelines '
            'OnDeviceAugmentation cannot take over: leave the data in the '
            'pipeline of the host.'
        )


def _arguments(kind: str, options: dict) -> dict | None:
    """Return what does the same on the device; None if nothing does."""
    if _is_crop(kind, options):
        return options
    if _is_flip(kind, options):
        return dict(flip_prob=options['prob'])
    return {} if kind in (*_READING, 'PackInputs') else None


def _is_crop(kind: str, options: dict) -> bool:
    sizes = set(options) <= {'crop_size', 'padding'}
    sizes = sizes and all(isinstance(v, int) for v in options.values())
    return kind == 'RandomCrop' and sizes and 'crop_size' in options


def _is_flip(kind: str, options: dict) -> bool:
    sideways = options.get('direction', 'horizontal') == 'horizontal'
    sideways = sideways and set(options) <= {'prob', 'direction'}
    once = isinstance(options.get('prob'), (int, float))
    return kind == 'RandomFlip' and sideways and once
