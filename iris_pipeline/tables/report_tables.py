"""Every table that the runs under results/ can fill, in the order of the page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from iris_pipeline import paper
from iris_pipeline.evaluation.evaluate import dataset_spec
from iris_pipeline.tables.ablations import ablation_tables, parts_tables
from iris_pipeline.tables.comparisons import (
    comparison_table,
    references_table,
    strategies_table,
)
from iris_pipeline.tables.confidence_table import confidence_table
from iris_pipeline.tables.efficiency import FOLDER, efficiency_table, read_measurements
from iris_pipeline.tables.left_out import left_out_tables
from iris_pipeline.tables.measure_tables import measures_by_class, measures_table
from iris_pipeline.tables.paper_tables import with_paper_tables
from iris_pipeline.tables.result_tables import collect_rows, result_tables, runs_table
from iris_pipeline.tables.role_tables import HELD_OUT, IN_DISTRIBUTION, role_table
from iris_pipeline.tables.run_facts import RunFacts, run_facts
from iris_pipeline.tables.table_format import Table
from preprocessing.errors import SpecError
from preprocessing.runtime.paths import Root
from preprocessing.spec import DatasetSpec, list_specs, load_spec


def all_tables(
    root: Root, runs: Sequence[str] | None = None, compare: Sequence[Sequence[str]] = ()
) -> list[Table]:
    """The tables of all evaluated runs, or of those named. EvaluationError where there is nothing to show.

    compare: pairs of rows to test, each RUN or RUN/STRATEGY.
    """
    rows = collect_rows(root.results, runs)
    names = list(dict.fromkeys(rows["run"]))
    facts = {name: found for name in names if (found := run_facts(root.results / name))}
    specs = _specs(root, rows, facts)
    columns = {
        name: column for name, spec in specs.items() if (column := paper.whole_column(spec)) is not None
    }
    by_dataset = with_paper_tables(result_tables(rows, columns), rows, specs)
    overview = [table for table in by_dataset if table.name == "overview"]
    forms = [table for table in by_dataset if table.name.startswith("paper_")]
    tables: list[Table | None] = [
        role_table(IN_DISTRIBUTION, rows, facts, specs),
        role_table(HELD_OUT, rows, facts, specs),
        comparison_table(rows, compare) if compare else None,
        strategies_table(rows),
        references_table(rows),
        confidence_table(root.results, names, {name: found.datasets for name, found in facts.items()}, rows),
        *left_out_tables(rows, facts),
        *parts_tables(rows, facts),
        *ablation_tables(rows, facts),
        efficiency_table(read_measurements(root.results / FOLDER)),
        *overview,
        *forms,
        *(table for table in by_dataset if table.name not in {each.name for each in (*overview, *forms)}),
        *(measures_table(rows, name) for name in sorted(set(rows["dataset"]))),
        measures_by_class(rows),
        runs_table(root.results, names),
    ]
    return [table for table in tables if table is not None]


def _specs(root: Root, rows: pd.DataFrame, facts: dict[str, RunFacts]) -> dict[str, DatasetSpec]:
    """The package's specifications, and those of the datasets in the rows and of those trained on."""
    wanted = set(rows["dataset"]) | {name for found in facts.values() for name in found.datasets}
    specs = {name: load_spec(name) for name in list_specs()}
    for name in sorted(wanted - {""}):
        try:
            specs[name] = dataset_spec(name, Path(root.preprocessed))
        except SpecError:
            continue
    return specs
