"""Packaging of sb_mm; settings of the tools are in ``pyproject.toml``."""

import runpy
import shutil
from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).resolve().parent


def requirements(name: str) -> list[str]:
    """Read ``requirements/<name>.txt`` without its comments."""
    text = (ROOT / 'requirements' / f'{name}.txt').read_text()
    lines = (line.split('#')[0].strip() for line in text.splitlines())
    return [line for line in lines if line]


class BuildPy(build_py):
    """Bring along what is outside the package.

    As in the hosts' wheels, configs and tools are in ``sb_mm/.mim``; an
    editable installation has them in the clone. ``sb_mm_ops.pth`` goes to the
    root of site-packages, where Python reads it at its start.
    """

    def run(self) -> None:
        """Copy the package, then the rest."""
        super().run()
        wheel = Path(self.build_lib)
        if self.editable_mode:  # PEP 660: what is there gets into the wheel
            wheel = Path(self.get_finalized_command('install').install_lib)
        else:
            self.copy_product(wheel / 'sb_mm/.mim')
        self.copy_file(ROOT / 'sb_mm_ops.pth', wheel)

    def copy_product(self, mim: Path) -> None:
        """Copy what :func:`sb_mm.files.product_root` holds."""
        for name in ('configs', 'tools'):
            ignore = shutil.ignore_patterns('__pycache__')
            shutil.copytree(
                ROOT / name, mim / name, False, ignore, dirs_exist_ok=True
            )
        self.copy_file(ROOT / 'model-index.yml', mim)


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
        'Programming Language :: Python :: 3.13',
        'Topic :: Scientific/Engineering :: Artificial Intelligence',
    ],
    python_requires='>=3.10',
    packages=find_packages(include=['sb_mm', 'sb_mm.*']),
    # An editable installation is then a path, which is searched before a
    # folder of the working directory that only has the package's name.
    package_dir={'': '.'},
    package_data={'sb_mm.paper': ['tables.json']},
    cmdclass={'build_py': BuildPy},
    entry_points={'console_scripts': ['sb-mm = sb_mm.__main__:main']},
    # Neither torch nor an OpenMMLab package: pip must not replace the ones
    # of the environment that sb_mm is added to. The extras pin one family,
    # which does not require the torch that it needs; any stays that is there.
    install_requires=requirements('runtime'),
    extras_require={
        **{
            name: [*requirements(name), 'torch', 'torchvision']
            for name in ('onedl', 'openmmlab')
        },
        **{
            name: requirements(name)
            for name in ('dev', 'export', 'bench', 'cluster')
        },
    },
    zip_safe=False,
)
