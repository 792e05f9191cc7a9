"""A result record to start from."""

import pytest

from sb_mm.paper.cells import find_cell
from sb_mm.paper.records import Record


@pytest.fixture(scope='session')
def make_record():
    """Return a function that makes the record of a full run of a cell."""

    def make(cell_id, final=91.0, **changes):
        cell = find_cell(cell_id)
        fields = dict(
            cell=cell.id,
            config=cell.config,
            overrides=cell.options(),
            deviations=[],
            seed=0,
            processes=1,
            epochs=200,
            history=[[199, 90.0], [200, final]],
            final=final,
            parameters=1_440_510,
            hours=1.0,
            hardware='GPU',
            versions={},
            commit='abc',
            date='2026-01-01',
        )
        return Record(**{**fields, **changes})

    return make
