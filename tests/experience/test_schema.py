import numpy as np
import pyarrow as pa
import pytest
from episodes_for_tests import make_episode

from peira.experience.episode import episodes_to_table
from peira.experience.schema import OPTIONAL, REQUIRED, SOURCE_TYPE, Source, step_schema, validate


def replaced(table: pa.Table, name: str, values) -> pa.Table:
    return table.set_column(table.column_names.index(name), name, values)


def test_a_schema_has_the_required_columns_and_only_the_optional_ones_asked_for():
    vector = pa.list_(pa.float32(), 3)
    schema = step_schema(vector, pa.int64(), optional=["propensity"], extra={"pixels": pa.binary()})
    assert schema.names == [*REQUIRED, "propensity", "pixels"]
    assert schema.field("observation").type == vector
    assert schema.field("source").type == SOURCE_TYPE


def test_final_observation_has_the_type_of_the_observation():
    vector = pa.list_(pa.float32(), 3)
    assert step_schema(vector, vector, optional=OPTIONAL).field("final_observation").type == vector


def test_an_unknown_optional_column_is_refused_by_name():
    with pytest.raises(ValueError, match="optional: 'advantage' is no column of a step"):
        step_schema(pa.int64(), pa.int64(), optional=["advantage"])


def test_an_episode_from_numpy_is_valid_and_its_sources_are_the_six_names():
    table = validate(make_episode(0).to_table())
    assert table["source"].type == SOURCE_TYPE
    assert table["source"].chunk(0).dictionary.to_pylist() == [source.value for source in Source]


@pytest.mark.parametrize("source", ["dreamed", "guided"])
@pytest.mark.parametrize("column", ["behaviour_log_prob", "propensity"])
def test_synthetic_steps_carry_no_propensity(source, column):
    table = make_episode(0, synthetic=True, source=source).to_table()
    validate(table)
    claimed = table.append_column(column, pa.array(np.zeros(len(table), np.float32)))
    with pytest.raises(ValueError, match=f"{column}: row 0 was {source} yet carries 0.0; no known policy"):
        validate(claimed)


@pytest.mark.parametrize(
    ("column", "values", "message"),
    [
        (
            "reward",
            pa.array(np.full(12, np.nan, np.float32)),
            r"reward: row 0 \(episode .*, step 0\) holds nan",
        ),
        ("reward", pa.array([1] * 12), "reward: expected float or double, came int64"),
        ("reward", pa.nulls(12, pa.float32()), "reward: 12 of 12 rows are null"),
        ("step", pa.array(range(1, 13), pa.int32()), "says 1, expected 0"),
        ("terminated", pa.array([False] * 12), "has neither and no error"),
        ("terminated", pa.array([True] * 12), "goes on after it ended at step 0"),
        ("source", pa.array(["imagined"] * 12), "source: 'imagined' in row 0 is none of real, replayed"),
    ],
)
def test_an_illegal_column_is_named_with_what_came(column, values, message):
    with pytest.raises(ValueError, match=message):
        validate(replaced(make_episode(0).to_table(), column, values))


def test_a_missing_column_is_named():
    with pytest.raises(ValueError, match="truncated: missing"):
        validate(make_episode(0).to_table().drop_columns("truncated"))


def test_scattered_rows_of_an_episode_are_refused():
    table = episodes_to_table([make_episode(0), make_episode(1)])
    with pytest.raises(ValueError, match="are not adjacent"):
        validate(pa.concat_tables([table, make_episode(0).to_table()], promote_options="default"))


def test_only_a_crash_may_leave_the_reward_out():
    table = make_episode(0).to_table()
    reward = table["reward"].to_pylist()
    table = replaced(table, "reward", pa.array([*reward[:-1], None], pa.float32()))
    with pytest.raises(ValueError, match="reward: 1 of 12 rows are null"):
        validate(table)
    validate(table.append_column("error", pa.array([None] * 11 + ["simulator diverged"])))
