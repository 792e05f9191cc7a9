"""Draw a VOC devkit of shapes, the data of the demo."""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sb_mm.datasets.synthetic_voc import make_synthetic_voc
from sb_mm.errors import UserInputError


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description='Draw a VOC devkit of shapes: OUT/VOC2007 with images, '
        'annotations and lists. The same arguments give the same devkit.',
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    # No `default=None` in the help of what has to be given.
    add(
        '--out',
        required=True,
        default=argparse.SUPPRESS,
        metavar='DIR',
        help='folder of the devkit',
    )
    add('--images', type=int, default=240, help='images in trainval.txt')
    add('--test-images', type=int, default=60, help='images in test.txt')
    add('--size', type=int, default=320, help='longer side in pixels')
    add('--seed', type=int, default=0, help='seed of the drawings')
    add(
        '--force',
        action='store_true',
        help='replace a synthetic devkit with other settings; other files '
        'are never deleted',
    )
    return parser.parse_args()


def main() -> int:
    """Draw the devkit and return the exit code."""
    args = parse_args()
    try:
        drawn = make_synthetic_voc(
            args.out,
            num_train=args.images,
            num_test=args.test_images,
            seed=args.seed,
            size=args.size,
            force=args.force,
            progress=True,
        )
    except UserInputError as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            'Stopped; nothing was written, call the same command again.',
            file=sys.stderr,
        )
        return 130
    counts = f'{args.images} + {args.test_images} images (trainval + test)'
    state = 'drawn' if drawn else 'already there, nothing to do'
    print(f'{args.out}: {counts} {state}.')
    return 0


if __name__ == '__main__':
    sys.exit(main())
