"""One VOC annotation: what is read of it, and what is refused."""

import pytest
from annotation_file import annotation_xml

from sb_mm.datasets.annotation import read_annotation
from sb_mm.errors import FileFault

BOX = (2, 1, 9, 8)
PLAIN = annotation_xml([('disc', BOX)])


def read(tmp_path, text):
    path = tmp_path / 'a.xml'
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_annotation(str(path))


@pytest.mark.parametrize('word', ['1', '1.0', 'True', 'YES', '2', '0.5'])
def test_words_and_numbers_that_say_difficult(tmp_path, word):
    objects = [('disc', BOX, text) for text in (word, '0', 'no', '')]
    text = annotation_xml([*objects, ('disc', BOX)])
    flags = [o.difficult for o in read(tmp_path, text).objects]
    assert flags == [True, False, False, False, False]


def test_boxes_of_nested_parts_are_no_objects(tmp_path):
    part = '<part><name>hat</name><bndbox><xmin>1</xmin></bndbox></part>'
    text = PLAIN.replace('<name>', f'{part}<name>')
    assert read(tmp_path, text).objects == [('disc', [*BOX], False)]


@pytest.mark.parametrize(
    ('declared', 'written'),
    [
        ('utf8', 'utf-8'),
        ('UTF_8', 'utf-8-sig'),
        ('utf16', 'utf-16'),
        ('utf-16-le', 'utf-16'),
        ('utf-16', 'utf-16-be'),
        ('utf-8', 'utf-16'),
        ('utf-16', 'utf-8'),
        ('utf-32', 'utf-32'),
        ('iso-8859-1', 'latin-1'),
        ('gb2312', 'gb18030'),
        ('big5', 'big5'),
        ('Shift_JIS', 'shift_jis'),
    ],
)
def test_any_encoding_that_is_declared(tmp_path, declared, written):
    name = {'latin-1': 'é', 'gb18030': '龍'}.get(written, '犬')
    head = f'<?xml version="1.0" encoding="{declared}"?>\n'
    text = (head + annotation_xml([(name, BOX)])).encode(written)
    assert read(tmp_path, text).objects[0].name == name


def without(element):
    start, rest = PLAIN.split(f'<{element}>')
    return start + rest.partition(f'</{element}>')[2]


UTF8 = 'save it as UTF-8'
LONG = 'x' * 2_000_000


@pytest.mark.parametrize(
    ('text', 'told'),
    [
        *((text, UTF8) for text in ('', b'\xff\xd8', '<annotation>')),
        ('<html></html>', 'holds <html>'),
        ('<annotation>é</annotation>'.encode('latin-1'), UTF8),
        *((f'<?xml encoding="{e}"?><a/>', UTF8) for e in ('hex', 'ansi')),
        (without('name'), "object '' with xmin 2, ymin 1, xmax 9, ymax 8: ev"),
        (without('bndbox'), "'disc' with xmin missing, ymin missing, xmax mi"),
        *(
            (
                annotation_xml([('disc', (2, 1, 9, value))]),
                f'ymax {value or "missing"}: every <object> needs',
            )
            for value in ('ten', '', 'nan', 'inf', '1,5', 0.5)
        ),
        (annotation_xml([('disc', (2, 1, 1, 8))]), 'xmax 1, ymax 8: every'),
        (annotation_xml([('disc', (LONG, 1, 9, 8))]), 'xx ... xx'),
        *(
            (annotation_xml([('disc', BOX, word)]), f"difficult '{word}': ev")
            for word in ('unspecified', 'nan')
        ),
    ],
    ids=lambda value: str(value)[-60:],
)
def test_what_cannot_be_used_is_refused(tmp_path, text, told):
    with pytest.raises(FileFault) as caught:
        read(tmp_path, text)
    assert str(caught.value).startswith(f'{tmp_path}/a.xml ')
    assert told in str(caught.value)
