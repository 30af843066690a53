"""iris_predict with references on disk (-r): one task for all scans, or one for each."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from iris_pipeline.checkpoints.checkpoint import LoadedModel
from iris_pipeline.cli._from_store import retrieval_settings
from iris_pipeline.cli._outputs import wishes_of
from iris_pipeline.cli._references import encoding_of, tell_better, tell_task
from iris_pipeline.confidence import judging
from iris_pipeline.inference.sliding_window import InferenceOptions
from iris_pipeline.inference.strategies import ensemble
from iris_pipeline.prediction.kept_task import (
    contents_digest,
    keep_task,
    kept_task,
    references_digest,
    request_name,
)
from iris_pipeline.prediction.made_from import REFERENCE_FILES, check_out
from iris_pipeline.prediction.own_queries import refuse_own_queries
from iris_pipeline.prediction.predict import Verdict, digest, predict_cases, predict_folder
from iris_pipeline.prediction.query_tasks import ONE_TASK, default_strategy, encode_files, file_tasks
from iris_pipeline.scans.inputs import InputCase
from iris_pipeline.scans.references import Candidate, ReferenceFiles


def predict_from_files(
    arguments: argparse.Namespace,
    files: ReferenceFiles,
    loaded: LoadedModel,
    folder: Path,
    inputs: list[InputCase],
    out: Path,
    options: InferenceOptions,
) -> list[Verdict]:
    """-r with any strategy: one task for all scans, or one for each."""
    strategy = arguments.strategy or default_strategy(files, arguments.references)
    asked = encoding_of(arguments)
    made_from, noted = _facts(strategy, files, arguments)
    check_out(
        loaded, inputs, out, options, arguments.overwrite, {"classes": files.classes, **made_from, **noted}
    )
    wishes = wishes_of(
        arguments,
        loaded,
        folder,
        options,
        witnesses=lambda: judging.file_witnesses(loaded, files, options, asked["seed"]),
        volumes=lambda _: judging.file_volumes(files),
    )

    def check(drawn: Sequence[Candidate]) -> None:
        refuse_own_queries(inputs, drawn)

    if strategy in ONE_TASK:
        path = out / request_name(loaded.model_hash, files, options, strategy=strategy, **asked)
        known = None if arguments.overwrite else kept_task(path)
        task = known or encode_files(
            loaded, files, options, strategy=strategy, check=check, progress=True, **asked
        )
        tell_task(task, arguments, files.classes)
        if known is not None:
            print(f"It was made before: {path}; --overwrite makes it anew.")
            return predict_folder(
                loaded, task, inputs, out, options, remarks=noted, left_out=arguments.left_out, **wishes
            )
        tell_better(strategy, files)

        def keep() -> None:
            keep_task(path, task)
            print(f"Kept for further scans, also for -t: {path}.")

        return predict_folder(
            loaded,
            task,
            inputs,
            out,
            options,
            remarks=noted,
            begun=keep,
            left_out=arguments.left_out,
            **wishes,
        )
    task_of, pool = file_tasks(
        strategy,
        loaded,
        files,
        options,
        retrieval=retrieval_settings(arguments),
        check=check,
        progress=True,
        **asked,
    )
    tell_task(replace(ensemble([r.task for r in pool]), made_by=strategy), arguments, files.classes)
    return predict_cases(
        loaded,
        lambda _, image: task_of(image),
        inputs,
        out,
        options,
        classes=files.classes,
        made_from=made_from,
        # Of before: by floats, which another precision makes others.
        formerly={"references": [digest(reference.task) for reference in pool]},
        remarks={"references": [reference.id for reference in pool]},
        left_out=arguments.left_out,
        **wishes,
    )


def _facts(
    strategy: str, files: ReferenceFiles, arguments: argparse.Namespace
) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the results are made from, as far as it is known before the references are encoded (None: not yet), and what
    is noted of the references beside it.
    """
    if strategy in ONE_TASK:
        count = arguments.references or len(files.cases)
        all_of_them = count >= len(files.cases) and (strategy != "one-shot" or len(files.cases) == 1)
        return {"task": None}, {REFERENCE_FILES: contents_digest(files)} if all_of_them else {}
    asked = encoding_of(arguments)
    made_from = {
        "strategy": strategy,
        "references": references_digest(files),
        "encoding": {"count": asked["count"], "seed": asked["seed"], "modality": asked["modality"]}
        | asdict(asked["showing"]),
        "settings": asdict(retrieval_settings(arguments)),
    }
    return made_from | asked["showing"].rules, {}
