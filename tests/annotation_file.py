"""Text of the annotation files that tests read."""

from collections.abc import Sequence


def annotation_xml(
    objects: Sequence[tuple],
    size: tuple[int, int] | None = (64, 48),
) -> str:
    """Text of a VOC annotation.

    Args:
        objects: (name, (xmin, ymin, xmax, ymax)) or the same with the text
            of `<difficult>`.
        size: (width, height) of the image; None leaves `<size>` out.
    """
    text = ''
    if size is not None:
        width, height = size
        text = f'<size><width>{width}</width><height>{height}</height></size>'
    for name, box, *difficult in objects:
        corners = zip(('xmin', 'ymin', 'xmax', 'ymax'), box, strict=True)
        bndbox = ''.join(f'<{key}>{value}</{key}>' for key, value in corners)
        flag = f'<difficult>{difficult[0]}</difficult>' if difficult else ''
        text += (
            f'<object><name>{name}</name>{flag}'
            f'<bndbox>{bndbox}</bndbox></object>'
        )
    return f'<annotation>{text}</annotation>'
