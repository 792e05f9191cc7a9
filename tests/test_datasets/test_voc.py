import io
import os
import struct
import zlib
from itertools import product
from unicodedata import normalize

import cv2
import numpy as np
import pytest
from annotation_file import annotation_xml
from PIL import Image

pytest.importorskip('mmdet')

from mmdet.datasets import ConcatDataset, VOCDataset  # noqa: E402
from mmengine.registry import DefaultScope  # noqa: E402

from sb_mm.datasets.images import ImageHeader  # noqa: E402
from sb_mm.datasets.voc import VOCDevkitDataset  # noqa: E402
from sb_mm.errors import UserInputError  # noqa: E402

CLASSES = ('square', 'disc')
STORED = 'color_ignore_orientation'
XML = 'Annotations/a.xml'
IMAGE = 'JPEGImages/a.jpg'
LIST = 'ImageSets/Main/train.txt'


def load(root, classes=CLASSES, **kwargs):
    dataset = VOCDevkitDataset(
        data_root=str(root),
        ann_file=LIST,
        metainfo=dict(classes=classes),
        serialize_data=False,  # which would collect garbage each time
        **kwargs,
    )
    dataset.check_images()
    return dataset


def load_voc(root, year='VOC2007', cls=VOCDevkitDataset):
    return cls(
        data_root=f'{root}/',
        ann_file=f'{year}/{LIST}',
        data_prefix=dict(sub_data_root=f'{year}/'),
        filter_cfg=dict(filter_empty_gt=True),
    )


def xml_of(name, box=(1, 1, 9, 9), size=(64, 48)):
    return annotation_xml([(name, box)], size)


def infos(dataset):
    return [dataset.get_data_info(i) for i in range(len(dataset))]


def error_of(root, **kwargs):
    with pytest.raises(UserInputError) as caught:
        load(root, **kwargs)
    message = str(caught.value)
    assert len(message) < 1600
    return message


@pytest.fixture
def flat(tiny_devkit):
    return tiny_devkit()


@pytest.fixture
def warnings_of(monkeypatch):
    logged = []
    monkeypatch.setattr(
        'sb_mm.datasets.images.print_log',
        lambda message, *_: logged.append(message),
    )
    return logged


# What is read


def test_ordinary_files_are_read_as_by_mmdet_and_years_concatenate(
    tiny_devkit,
):
    files = ('a.jpg', 'b.jpg', 'c.jpg')
    for year in ('VOC2007', 'VOC2012'):
        root = tiny_devkit(year, files=files, classes=('cat', 'dog'))
    ours, theirs = load_voc(root), load_voc(root, cls=VOCDataset)
    assert infos(ours) == infos(theirs)
    # Without `ignore_keys`, which mmdet's needs.
    assert len(ConcatDataset([ours, load_voc(root, 'VOC2012')])) == 4


@pytest.mark.parametrize(
    ('box', 'size', 'bbox'),
    [
        (('10.9', 5, '20.2', 30), (64, 48), [9, 4, 19, 29]),
        ((-3, 0, 70, 90), (64, 48), [0, 0, 63, 47]),
        ((20, 1, 60, 99), (32, 24), [19, 0, 59, 47]),
        ((30, 20, 90, 60), (128, 96), [29, 19, 63, 47]),
        ((1, 1, 9, 9), None, [0, 0, 8, 8]),
    ],
)
def test_boxes_count_from_zero_and_are_clipped_to_the_image_itself(
    flat, warnings_of, box, size, bbox
):
    (flat / XML).write_text(xml_of('disc', box, size))
    info = load(flat).get_data_info(0)
    assert info['instances'] == [dict(ignore_flag=0, bbox=bbox, bbox_label=1)]
    assert (info['width'], info['height']) == (64, 48)
    wrong = size in ((32, 24), (128, 96))
    assert ('1 annotations give another' in ''.join(warnings_of)) == wrong


@pytest.mark.parametrize(
    ('named', 'used', 'warned'),
    [
        ('a.png', 'a.png', False),
        (r'C:\images\A.PNG', 'a.png', False),
        ('a.bmp', 'a.bmp', False),
        ('b.png', 'a.bmp', True),
    ],
)
def test_of_several_images_filename_names_the_one(
    tiny_devkit, warnings_of, named, used, warned
):
    files = ('a.bmp', 'a.jpg', 'a.png')
    root = tiny_devkit(files=files, lists={'train': 'a\n'})
    name = f'<filename>{named}</filename>'
    text = xml_of('disc').replace('<object>', f'{name}<object>')
    (root / XML).write_text(text)
    assert load(root).get_data_info(0)['img_path'].endswith(used)
    assert ''.join(warnings_of).startswith('1 names have sev') == warned


def test_suffixes_in_any_case_and_lists_with_blanks_labels_and_repeats(
    tiny_devkit, warnings_of
):
    files = ('a.JPG', 'b.Png', 'my cat 1.jpeg', 'd.d.PNG')
    text = '\ufeffa  1\r\n\n b -1 \nmy cat 1\na\nd.d'
    dataset = load(tiny_devkit(files=files, lists={'train': text}))
    paths = [info['img_path'] for info in infos(dataset)]
    assert [os.path.basename(path) for path in paths] == [*files]
    assert [i['img_id'] for i in infos(dataset)][2:] == ['my cat 1', 'd.d']
    (message,) = warnings_of
    assert message.startswith('1 names are repeated')


@pytest.mark.parametrize('forms', ['CDD', 'DCC', 'CCD'])
def test_names_are_the_same_in_any_form_of_unicode(tiny_devkit, forms):
    """Such as a file of macOS in a folder of Linux."""
    listed, folder, file = (normalize(f'NF{f}', 'caf\u00e9') for f in forms)
    lines = f'{listed}/{listed}\n{folder}/{file}\n'
    root = tiny_devkit(files=('a.jpg',), lists={'train': lines})
    (root / XML).write_text(xml_of(file))
    for path in (root / IMAGE, root / XML):
        (path.parent / folder).mkdir()
        path.rename(path.parent / folder / (file + path.suffix))
    dataset = load(root, classes=('cat', listed))
    assert [i['img_id'] for i in infos(dataset)] == [f'{folder}/{file}']
    assert dataset.get_data_info(0)['instances'][0]['bbox_label'] == 1


# The pixels that boxes belong to


@pytest.mark.parametrize(
    ('exif_tag', 'size_is', 'color_type'),
    [
        *product(range(1, 9), ['stored', 'shown'], ['color', STORED]),
        (6, 'stored', 'unchanged'),
    ],
)
def test_boxes_fit_the_pixels_that_are_loaded(
    flat, warnings_of, exif_tag, size_is, color_type
):
    size, box = (64, 48), (5, 9, 24, 20)
    pixels = np.zeros((48, 64, 3), np.uint8)
    pixels[8:20, 4:24] = 255
    image, exif = Image.fromarray(pixels), Image.Exif()
    exif[0x0112] = exif_tag
    image.save(flat / IMAGE, exif=exif, quality=95)
    if size_is == 'shown' and exif_tag >= 5:
        header = ImageHeader(size, exif_tag)
        x1, y1, x2, y2 = header.turn_box([v - 1 for v in box], True)
        size, box = (48, 64), (x1 + 1, y1 + 1, x2 + 1, y2 + 1)
    (flat / XML).write_text(xml_of('disc', box, size))
    pipeline = [
        dict(type='LoadImageFromFile', color_type=color_type),
        dict(type='LoadAnnotations', with_bbox=True),
    ]
    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = load(flat, pipeline=pipeline)
    sample, info = dataset[0], dataset.get_data_info(0)
    x1, y1, x2, y2 = (int(v) for v in sample['gt_bboxes'].tensor[0])
    bright = sample['img'][..., 0] > 127
    assert bright[y1 : y2 + 1, x1 : x2 + 1].mean() > 0.98
    assert bright.sum() == pytest.approx(240, abs=12)
    assert sample['img_shape'] == (info['height'], info['width'])
    warned = ''.join(warnings_of).startswith('1 images have an EXIF')
    assert warned == (exif_tag != 1)


# What is refused


def test_missing_files_are_named_with_the_way_to_get_them(tmp_path):
    with pytest.raises(UserInputError) as caught:
        load_voc(tmp_path)
    for part in (
        f'{tmp_path}/VOC2007/{LIST} cannot be read (No such file',
        f'{tmp_path}/VOC2007/ needs Annotations/<name>.xml and JPEGImages',
        f'`python tools/prepare_voc.py --out {tmp_path}`',
    ):
        assert part in str(caught.value)


def test_all_missing_files_are_counted_and_three_are_named(tiny_devkit):
    root = tiny_devkit(
        files=[f'{name}.jpg' for name in 'abcde'],
        lists={'train': 'a\nb\nc\nd\ne\nghost'},
    )
    for name in ('a.xml', 'b.xml', 'b.jpg', 'd.jpg'):
        next(root.rglob(name)).unlink()
    message = error_of(root)
    assert message.startswith('4 of the 6 names')
    named = 'a (no annotation), b (no annotation and image), d (no image) and'
    assert f'{named} 1 more: the image list needs names without' in message


def encoded(kind):
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (48, 64, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


def png_of(width, height):
    """A PNG whose head says so; the rest is that of a small one."""
    data = bytearray(encoded('PNG'))
    data[16:24] = struct.pack('>II', width, height)
    data[29:33] = struct.pack('>I', zlib.crc32(data[12:29]))
    return data


def deep(suffix, *channels):
    pixels = np.full((48, 64, *channels), 4095, np.uint16)
    return cv2.imencode(suffix, pixels)[1].tobytes()


PNG = encoded('PNG')
DAMAGED = PNG[:4000] + b'damaged' + PNG[4007:]
# File and what is said of it: contents.
REFUSED = {
    **{(file, 'is a folder, pipe or'): [None] for file in (LIST, XML, IMAGE)},
    (LIST, 'is empty or not UTF-8'): [b' \n\n', b'M\xe4nnchen'],
    (XML, 'is not XML'): [b''],
    (XML, 'max_annotation_mb'): [b' ' * 4_000_001],
    (XML, "'dsic'", 'square, disc', '`cl'): [xml_of('dsic').encode()],
    (XML, 'xx ... xx', 'square, disc'): [xml_of('x' * 2_000_000).encode()],
    (IMAGE, 'is not a readable image'): [
        *(b'', b'no image', encoded('JPEG')[:-40], PNG[:-40], DAMAGED),
        *map(encoded, ('ICO', 'TGA', 'PCX')),
    ],
    (IMAGE, 'has more than 8 bits', 'mogrify'): [
        *map(deep, ('.png', '.tiff', '.jp2')),
        *(deep(suffix, 3) for suffix in ('.png', '.ppm', '.jp2')),
    ],
    (IMAGE, 'sides up to 32766', 'max_megapixels'): [
        *(png_of(*size) for size in ((60_000, 1), (12_000, 12_000)))
    ],
}


@pytest.mark.parametrize(
    ('told', 'content'),
    [(told, content) for told, many in REFUSED.items() for content in many],
    ids=lambda value: str(value)[:60],
)
def test_a_file_that_cannot_be_used_is_named(flat, told, content):
    path = flat / told[0]
    path.unlink()
    if content is None:
        os.mkfifo(path)
    else:
        path.write_bytes(content)
    message = error_of(flat)
    assert [w for w in (str(path), *told[1:]) if w not in message] == []


def test_faults_of_one_kind_are_reported_together(tiny_devkit):
    root = tiny_devkit(files=[f'{name}.jpg' for name in 'abcdefg'])
    for name in 'abcde':
        (root / f'Annotations/{name}.xml').write_text(xml_of('cat'))
    (root / 'Annotations/f.xml').write_text('not xml')
    message = error_of(root)
    assert message.count("has the class 'cat'") == 3
    assert 'and 2 more' in message
    assert 'f.xml' not in message


@pytest.mark.parametrize(
    ('options', 'told'),
    [
        *(
            (dict(classes=classes), 'classes')
            for classes in ('disc', (), ('disc', 'disc'), (1, 2))
        ),
        (dict(classes=('\u00e9', 'e\u0301')), 'each of them once'),
        (dict(filter_cfg=dict(min_size=99)), 'None of the 3 images'),
        (dict(backend_args=dict(backend='petrel')), 'petrel'),
    ],
)
def test_settings_that_cannot_be_used_are_refused(flat, options, told):
    assert told in error_of(flat, **options)


@pytest.mark.parametrize(
    ('refuses', 'named'),
    [('os.scandir', 'Annotations'), ('sb_mm.datasets.images.open', LIST)],
)
def test_what_may_not_be_read_is_named(flat, monkeypatch, refuses, named):
    def deny(path, *_):
        raise PermissionError(13, 'Permission denied', path)

    monkeypatch.setattr(refuses, deny, raising=False)
    assert f'{named} cannot be read (Permission' in error_of(flat)


# What is taken


@pytest.mark.parametrize(
    ('content', 'reader'),
    [
        (encoded('JPEG') + bytes(100), {}),
        (encoded('TGA'), dict(imdecode_backend='pillow')),
        (deep('.png'), dict(color_type='unchanged')),
        (deep('.jp2', 3), dict(color_type='unchanged')),
    ],
    ids=['data behind its end', 'TGA', 'deep', 'deep JPEG 2000'],
)
def test_what_the_pipeline_can_decode_passes(flat, content, reader):
    (flat / IMAGE).write_bytes(content)
    load(flat, pipeline=[dict(type='LoadImageFromFile', **reader)])


def test_the_limits_can_be_lifted(flat):
    Image.new('1', (14_000, 13_000)).save(flat / 'JPEGImages/b.png')
    (flat / XML).write_text(xml_of('disc') + ' ' * 4_000_001)
    load(flat, max_megapixels=200, max_annotation_mb=5)
