"""Packaging of sb_mm; settings of the tools are in ``pyproject.toml``."""

import runpy
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent


def requirements(name: str) -> list[str]:
    """Read ``requirements/<name>.txt`` without its comments."""
    text = (ROOT / 'requirements' / f'{name}.txt').read_text()
    lines = (line.split('#')[0].strip() for line in text.splitlines())
    return [line for line in lines if line]


setup(
    name='sb_mm',
    version=runpy.run_path(str(ROOT / 'sb_mm/version.py'))['__version__'],
    description='Shift-and-Balance attention for the OpenMMLab family',
    long_description=(ROOT / 'README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    author='The sb_mm authors',
    license='Apache-2.0',
    keywords=[
        'computer vision',
        'attention',
        'object detection',
        'image classification',
        'OpenMMLab',
    ],
    classifiers=[
        'Development Status :: 4 - Beta',
        'Intended Audience :: Science/Research',
        'Operating System :: POSIX',
        'Programming Language :: Python :: 3',
        'Programming Language :: Python :: 3.10',
        'Programming Language :: Python :: 3.11',
        'Programming Language :: Python :: 3.12',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    python_requires='>=3.10',
    packages=find_packages(include=['sb_mm', 'sb_mm.*']),
    package_data={'sb_mm.paper': ['tables.json']},
    # Neither torch nor an OpenMMLab package: pip must not replace the ones
    # of the environment that sb_mm is added to. The extras pin one family.
    install_requires=requirements('runtime'),
    extras_require={
        name: requirements(name)
        for name in (
            'onedl',
            'openmmlab',
            'dev',
            'export',
            'bench',
            'cluster',
        )
    },
    zip_safe=False,
)
