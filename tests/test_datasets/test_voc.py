import logging
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip('mmdet')

from mmdet.datasets import ConcatDataset, VOCDataset  # noqa: E402
from mmdet.registry import DATASETS as MMDET_DATASETS  # noqa: E402
from mmengine.registry import DefaultScope  # noqa: E402

from sb_mm.datasets.voc_devkit import (  # noqa: E402  # noqa: E402
    VOCDevkitDataset,
    check_images,
    image_size,
    make_palette,
)
from sb_mm.errors import UserInputError  # noqa: E402

CLASSES = ('square', 'disc')


def load(root, name='train', classes=CLASSES, **kwargs):
    return VOCDevkitDataset(
        data_root=str(root),
        ann_file=f'ImageSets/Main/{name}.txt',
        metainfo=dict(classes=classes),
        serialize_data=False,  # which would collect garbage each time
        **kwargs,
    )


def load_voc(root, year='VOC2007', cls=VOCDevkitDataset, name='train'):
    return cls(
        data_root=f'{root}/',
        ann_file=f'{year}/ImageSets/Main/{name}.txt',
        data_prefix=dict(sub_data_root=f'{year}/'),
        filter_cfg=dict(filter_empty_gt=True),
    )


def infos(dataset):
    return [dataset.get_data_info(i) for i in range(len(dataset))]


def annotate(root, name, text):
    (root / f'Annotations/{name}.xml').write_text(text)


@pytest.fixture
def flat(tiny_devkit):
    return tiny_devkit()


@pytest.fixture
def error_of(flat, make_xml):
    """The sentence that loading gives when a.xml is `text`."""

    def sentence(text=None, objects=None, **kwargs):
        annotate(flat, 'a', text if objects is None else make_xml(objects))
        with pytest.raises(UserInputError) as caught:
            load(flat, **kwargs)
        message = str(caught.value)
        assert '\n' not in message
        assert str(flat / 'Annotations/a.xml') in message
        return message

    return sentence


@pytest.fixture
def warnings_of(monkeypatch):
    logged = []

    def record(message, logger, level):
        assert level == logging.WARNING
        logged.append(message)

    monkeypatch.setattr('sb_mm.datasets.voc_devkit.print_log', record)
    return logged


# What is read


def test_equals_mmdets_reader_on_ordinary_files(tiny_devkit):
    root = tiny_devkit(
        sub='VOC2007',
        files=('a.jpg', 'b.jpg', 'c.jpg'),
        classes=('cat', 'dog'),
    )
    ours, theirs = load_voc(root), load_voc(root, cls=VOCDataset)
    assert infos(ours) == infos(theirs)
    assert len(ours) == 2


def test_is_found_from_the_scope_of_mmdet(flat):
    with DefaultScope.overwrite_default_scope('mmdet'):
        dataset = MMDET_DATASETS.build(
            dict(
                type='sb_mm.VOCDevkitDataset',
                data_root=str(flat),
                ann_file='ImageSets/Main/train.txt',
                metainfo=dict(classes=list(CLASSES)),
                pipeline=[
                    dict(type='LoadImageFromFile'),
                    dict(type='LoadAnnotations', with_bbox=True),
                    dict(type='PackDetInputs'),
                ],
            )
        )
    assert isinstance(dataset, VOCDevkitDataset)
    assert tuple(dataset[1]['inputs'].shape) == (3, 48, 64)


def test_voc2007_and_voc2012_concatenate_without_ignore_keys(tiny_devkit):
    for year in ('VOC2007', 'VOC2012'):
        root = tiny_devkit(sub=year, classes=('cat', 'person'))
    both = ConcatDataset([load_voc(root), load_voc(root, 'VOC2012')])
    assert len(both) == 6
    assert len(both.metainfo['classes']) == 20
    assert 'dataset_type' not in both.metainfo


def test_coordinates_count_from_zero_and_fractions_are_cut(flat, make_xml):
    annotate(flat, 'a', make_xml([('disc', ('10.9', 5, '20.2', 30))]))
    (instance,) = load(flat).get_data_info(0)['instances']
    assert instance == dict(ignore_flag=0, bbox=[9, 4, 19, 29], bbox_label=1)


def test_only_difficult_1_is_ignored_and_small_boxes_are_kept(flat, make_xml):
    box = (10, 10, 12, 11)
    objects = [('disc', box, '1'), ('disc', box, '0'), ('disc', box)]
    annotate(flat, 'a', make_xml(objects))
    instances = load(flat).get_data_info(0)['instances']
    assert [i['ignore_flag'] for i in instances] == [1, 0, 0]


def test_bbox_min_size_of_the_host_still_ignores_small_boxes(flat, make_xml):
    boxes = [('disc', (10, 10, 20, 19)), ('disc', (10, 10, 20, 20))]
    annotate(flat, 'a', make_xml(boxes))
    dataset = load(flat, filter_cfg=dict(bbox_min_size=10))
    flags = [i['ignore_flag'] for i in infos(dataset)[0]['instances']]
    assert flags == [1, 0]


def test_boxes_of_nested_parts_are_no_objects(flat, make_xml):
    part = '<part><name>hat</name><bndbox><xmin>1</xmin></bndbox></part>'
    text = make_xml([('square', (10, 10, 20, 20))])
    text = text.replace('<name>square</name>', f'{part}<name>square</name>')
    annotate(flat, 'a', text)
    (instance,) = load(flat).get_data_info(0)['instances']
    assert instance['bbox'] == [9, 9, 19, 19]


@pytest.mark.parametrize('size', [None, (0, 0), ('', 48)])
def test_a_missing_size_is_read_from_the_image(flat, make_xml, size):
    annotate(flat, 'a', make_xml([('disc', (1, 1, 9, 9))], size))
    info = load(flat).get_data_info(0)
    assert (info['width'], info['height']) == (64, 48)


def test_boxes_that_stick_out_are_clipped(flat, make_xml):
    annotate(flat, 'a', make_xml([('disc', (-3, 0, 70, 90))]))
    (instance,) = load(flat).get_data_info(0)['instances']
    assert instance['bbox'] == [0, 0, 63, 47]


def test_degenerate_boxes_are_skipped_with_one_warning(
    flat, make_xml, warnings_of
):
    good = ('disc', (1, 1, 9, 9))
    no_width, no_height = ('disc', (5, 1, 5, 9)), ('disc', (1, 7, 9, 7))
    outside = ('disc', (70, 10, 80, 20))
    annotate(flat, 'a', make_xml([no_width, good, no_height]))
    annotate(flat, 'c', make_xml([good, outside]))
    dataset = load(flat)
    counts = [len(info['instances']) for info in infos(dataset)]
    assert counts[0] == counts[2] == 1
    (message,) = warnings_of
    assert '3 degenerate boxes' in message
    assert 'a.xml' in message
    assert 'c.xml' in message
    assert 'b.xml' not in message


def test_image_suffixes_in_any_case(tiny_devkit):
    files = ('a.JPG', 'b.Png', 'c.jpeg', 'd.d.PNG', 'e.jpg')
    dataset = load(tiny_devkit(files=files))
    paths = [info['img_path'].rsplit('/', 1)[1] for info in infos(dataset)]
    assert paths == list(files[:-1])
    check_images(dataset)


def test_lists_with_blank_lines_labels_and_repeats(tiny_devkit, warnings_of):
    root = tiny_devkit(
        files=('a.jpg', 'b.jpg', 'my cat 1.jpg'),
        lists={'train': '\ufeffa  1\r\n\n b -1 \nmy cat 1\na\n'},
    )
    dataset = load(root)
    assert [i['img_id'] for i in infos(dataset)] == ['a', 'b', 'my cat 1']
    (message,) = warnings_of
    assert message.startswith('1 names are repeated')


def test_names_with_folders_are_found(tiny_devkit):
    root = tiny_devkit(files=('a.jpg', 'b.jpg'), lists={'train': 'day/a\n'})
    for folder, file in (('JPEGImages', 'a.jpg'), ('Annotations', 'a.xml')):
        (root / folder / 'day').mkdir()
        (root / folder / file).rename(root / folder / 'day' / file)
    assert load(root).get_data_info(0)['img_id'] == 'day/a'


def test_own_classes_get_a_palette_of_distinct_colours(flat):
    palette = load(flat).metainfo['palette']
    assert len(palette) == 2
    assert len(set(make_palette(100))) == 100
    assert all(0 <= part <= 255 for rgb in make_palette(100) for part in rgb)
    own = dict(classes=CLASSES, palette=[(1, 2, 3), (4, 5, 6)])
    dataset = VOCDevkitDataset(metainfo=own, lazy_init=True)
    assert dataset.metainfo['palette'] == own['palette']


def test_voc_keeps_mmdets_classes_and_palette():
    metainfo = VOCDevkitDataset(lazy_init=True).metainfo
    assert metainfo['palette'] == VOCDataset.METAINFO['palette']
    assert metainfo['classes'] == VOCDataset.METAINFO['classes']


# What is refused


def test_missing_voc_names_the_files_and_the_command(tmp_path):
    root = tmp_path / 'VOCdevkit'
    with pytest.raises(UserInputError) as caught:
        load_voc(root)
    message = str(caught.value)
    assert f'{root}/VOC2007/ImageSets/Main/train.txt' in message
    assert f'{root}/VOC2007/Annotations' in message
    assert f'{root}/VOC2007/JPEGImages' in message
    assert f'`python tools/prepare_voc.py --out {root}`' in message


@pytest.mark.parametrize('sub', ['', 'VOC2007/'])
def test_missing_own_data_says_what_is_expected(tmp_path, sub):
    prefix = dict(sub_data_root=sub)
    with pytest.raises(UserInputError) as caught:
        load(tmp_path / 'mine', data_prefix=prefix)
    message = str(caught.value)
    assert 'prepare_voc' not in message
    assert 'mine must hold' in message
    assert f'{sub}Annotations/<name>.xml' in message


def test_voc_with_empty_folders_names_the_command(tiny_devkit):
    root = tiny_devkit(sub='VOC2007', classes=('cat',))
    for file in (root / 'VOC2007/JPEGImages').iterdir():
        file.unlink()
    with pytest.raises(UserInputError, match='prepare_voc'):
        load_voc(root)


def test_an_empty_list_is_refused(tiny_devkit):
    root = tiny_devkit(lists={'train': ' \n\n'})
    with pytest.raises(UserInputError, match=r'train\.txt is empty'):
        load(root)


def test_a_list_in_another_encoding_is_refused(flat):
    path = flat / 'ImageSets/Main/train.txt'
    path.write_bytes('Männchen'.encode('latin-1'))
    with pytest.raises(UserInputError, match='UTF-8'):
        load(flat)


def test_all_missing_files_are_counted_and_three_are_named(tiny_devkit):
    names = ('a', 'b', 'c', 'd', 'e')
    root = tiny_devkit(
        files=[f'{n}.jpg' for n in names],
        lists={'train': '\n'.join([*names, 'ghost'])},
    )
    for name in ('a', 'b'):
        (root / f'Annotations/{name}.xml').unlink()
    for name in ('b', 'd'):
        (root / f'JPEGImages/{name}.jpg').unlink()
    with pytest.raises(UserInputError) as caught:
        load(root)
    message = str(caught.value)
    assert message.startswith('4 of the 6 names')
    assert (
        'a (no annotation), b (no annotation and image), d (no image) '
        'and 1 more:'
    ) in message


@pytest.mark.parametrize(
    'text', ['', 'no xml', '<annotation><object>', '<html></html>']
)
def test_an_annotation_that_is_not_one_is_refused(error_of, text):
    message = error_of(text)
    assert 'is not XML' in message or 'holds <html>' in message


@pytest.mark.parametrize(
    ('tag', 'told'),
    [
        ('name', 'without <name>'),
        ('bndbox', 'without <bndbox>'),
        ('ymax', 'without <ymax>'),
    ],
)
def test_an_incomplete_object_is_refused(error_of, make_xml, tag, told):
    text = make_xml([('disc', (1, 1, 9, 9))])
    start, end = text.index(f'<{tag}>'), text.index(f'</{tag}>')
    assert told in error_of(text[:start] + text[end + len(tag) + 3 :])


@pytest.mark.parametrize('value', ['ten', '', 'nan', 'inf', '1,5'])
def test_a_coordinate_that_is_no_number_is_refused(error_of, value):
    message = error_of(objects=[('disc', (1, 1, value, 9))])
    assert f"xmax '{value}'" in message


@pytest.mark.parametrize('box', [(9, 1, 5, 9), (1, 9, 9, 8.5)])
def test_an_inverted_box_is_refused(error_of, box):
    message = error_of(objects=[('disc', box)])
    assert "inverted 'disc' box" in message
    assert f'xmax {box[2]:g}' in message


def test_an_unknown_class_is_refused_with_the_known_ones(error_of):
    message = error_of(objects=[('dsic', (1, 1, 9, 9))])
    assert "the class 'dsic'" in message
    assert 'square, disc' in message
    assert '`classes`' in message


def test_unknown_classes_can_be_skipped(flat):
    every = sum(len(info['instances']) for info in infos(load(flat)))
    discs = load(flat, classes=('disc',), skip_unknown_classes=True)
    left = sum(len(info['instances']) for info in infos(discs))
    assert 0 < left < every


def test_faults_of_one_kind_are_reported_together(tiny_devkit, make_xml):
    files = [f'{name}.jpg' for name in 'abcdefg']
    root = tiny_devkit(files=files)
    for name in 'abcde':
        annotate(root, name, make_xml([('cat', (1, 1, 9, 9))]))
    annotate(root, 'f', 'not xml')
    with pytest.raises(UserInputError) as caught:
        load(root)
    message = str(caught.value)
    assert message.count("has the class 'cat'") == 3
    assert 'and 2 more' in message
    assert 'f.xml' not in message


def test_an_unreadable_image_without_size_is_refused(flat, make_xml):
    annotate(flat, 'a', make_xml([('disc', (1, 1, 9, 9))], None))
    (flat / 'JPEGImages/a.jpg').write_text('no image')
    with pytest.raises(UserInputError, match=r'a\.jpg is not a readable'):
        load(flat)


@pytest.mark.parametrize('classes', ['disc', (), ('disc', 'disc')])
def test_classes_that_are_no_set_of_names_are_refused(flat, classes):
    with pytest.raises(UserInputError, match='classes'):
        load(flat, classes=classes)


def test_a_filter_that_leaves_nothing_is_refused(tiny_devkit, make_xml):
    root = tiny_devkit(lists={'train': 'a\n'})
    annotate(root, 'a', make_xml([]))
    assert len(load(root)) == 1
    with pytest.raises(UserInputError, match='None of the 1 images'):
        load(root, filter_cfg=dict(filter_empty_gt=True))


def test_remote_storage_is_refused(flat):
    with pytest.raises(UserInputError, match='petrel'):
        load(flat, backend_args=dict(backend='petrel'))


# Images


def test_whole_images_pass_below_wrappers(flat):
    check_images(ConcatDataset([load(flat), load(flat, 'test')]))
    check_images(object())


@pytest.mark.parametrize('name', ['a.jpg', 'b.png'])
def test_a_truncated_image_is_found(flat, name):
    path = flat / 'JPEGImages' / name
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(UserInputError) as caught:
        check_images(ConcatDataset([load(flat), load(flat, 'test')]))
    assert f'{path} is not a readable image' in str(caught.value)


@pytest.mark.parametrize('content', [b'', b'no image'])
def test_a_file_that_is_no_image_is_found(flat, content):
    (flat / 'JPEGImages/a.jpg').write_bytes(content)
    with pytest.raises(UserInputError, match=r'a\.jpg is not a readable'):
        load(flat).check_images()


def test_a_whole_image_with_data_behind_its_end_passes(flat):
    path = flat / 'JPEGImages/a.jpg'
    path.write_bytes(path.read_bytes() + bytes(100))
    load(flat).check_images()


def test_a_wrong_size_in_an_annotation_is_a_warning(
    flat, make_xml, warnings_of
):
    annotate(flat, 'a', make_xml([('disc', (1, 1, 9, 9))], (48, 64)))
    load(flat).check_images()
    (message,) = warnings_of
    assert '1 annotations give another size' in message
    assert 'a.xml' in message


def test_boxes_are_clipped_to_the_image_and_not_to_a_wrong_size(
    flat, make_xml
):
    annotate(flat, 'a', make_xml([('disc', (20, 1, 60, 99))], (32, 24)))
    info = load(flat).get_data_info(0)
    assert (info['width'], info['height']) == (64, 48)
    assert info['instances'][0]['bbox'] == [19, 0, 59, 47]


@pytest.mark.parametrize('orientation', [3, 6, 8])
def test_the_size_is_that_which_mmcv_loads(tmp_path, orientation):
    import mmcv

    path = tmp_path / 'turned.jpg'
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new('RGB', (40, 30)).save(path, exif=exif)
    height, width = mmcv.imread(str(path)).shape[:2]
    assert image_size(str(path)) == (width, height)


# Packaging


def test_the_tools_that_handle_files_start_without_torch():
    code = (
        'import sys\n'
        "sys.modules['torch'] = sys.modules['mmdet'] = None\n"
        'import sb_mm.datasets.synthetic_voc\n'
        'import sb_mm.datasets.prepare_voc\n'
    )
    root = Path(__file__).parents[2]
    subprocess.run([sys.executable, '-c', code], cwd=root, check=True)
