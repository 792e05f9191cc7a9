"""Run a tool of sb_mm from any folder: ``sb-mm train CONFIG``."""

import ast
import runpy
import sys

from .files import product_root

_USAGE = """\
usage: sb-mm COMMAND ...

`sb-mm COMMAND --help` shows its arguments. A CONFIG that is no file, such as
configs/ssd_sb_voc.py, is taken from {root}.
"""


def main() -> None:
    """Run the tool that the first argument names, with the others."""
    given = ''.join(sys.argv[1:2]).replace('-', '_')
    tools = {file.stem: file for file in product_root().glob('tools/*.py')}
    if given in tools:
        sys.argv[:2] = [str(tools[given])]
        runpy.run_path(sys.argv[0], run_name='__main__')
        return
    print(_USAGE.format(root=product_root()))
    for name, file in sorted(tools.items()):
        docstring = ast.get_docstring(ast.parse(file.read_text()))
        print(f'  {name:<18} {docstring.splitlines()[0]}')
    if given not in ('', '_h', '__help'):
        print(f'error: no command {sys.argv[1]}', file=sys.stderr)
        sys.exit(2)


if __name__ == '__main__':
    main()
