"""Many chains for comparison: weights, Algorithm 1 and seeds, the first network shared within a seed."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from sdgpu.backend.checks import choice, integer
from sdgpu.backend.distributed import join
from sdgpu.backend.progress import Progress
from sdgpu.nn.chain import FirstTeacher, Lab, Model, check_weights, run_chain, start
from sdgpu.nn.chain_records import Chain, StepRecord, rule_folder, rule_name
from sdgpu.nn.config import Config
from sdgpu.nn.evaluate import checksum, float_type
from sdgpu.nn.listening import OnEpoch, labelled
from sdgpu.nn.loss import mixed_target, smoothed
from sdgpu.nn.preconditions import check_cacheable, check_teacher
from sdgpu.nn.records import TrainResult
from sdgpu.nn.stacked import train_stacked
from sdgpu.nn.targets import Teacher, cached_predictions

__all__ = ["grid_chains"]

Rule = float | Sequence[float] | str


def grid_chains(
    model: Model,
    data: Any,
    config: Config,
    *,
    steps: int,
    alphas: Sequence[Rule],
    seeds: Sequence[int] | None = None,
    clip: bool = False,
    stacked: bool = False,
    folder: str | Path | None = None,
    progress: Progress | None = None,
    resume: bool = True,
    stem: str = "cifar",
    first_teacher: FirstTeacher | None = None,
    on_epoch: OnEpoch | None = None,
) -> tuple[Chain, ...]:
    """Train a chain for each rule and seed; chains of one seed share the first network.

    Parameters
    ----------
    model : Module, str or callable
        As for :func:`~sdgpu.nn.chain.distill_chain`; a Module allows one seed only, for it has its
        weights already.
    data : Data
    config : Config
    steps : int
        T.
    alphas : sequence
        g rules, each a weight, a schedule of T - 1 weights, or "algorithm1".
    seeds : sequence of int, optional
        Each stands for all three seeds of `config`; None takes those of `config`.
    clip : bool, default False
        For Algorithm 1.
    stacked : bool, default False
        Train the chains with given weights side by side (:mod:`sdgpu.nn.stacked`): equal to one by
        one within rounding. Needs teacher="cached".
    folder, progress, resume, stem, first_teacher
        As for :func:`~sdgpu.nn.chain.distill_chain`; one folder for each seed and rule.
    on_epoch : callable, optional
        As for :func:`~sdgpu.nn.chain.distill_chain`: it hears every fit by itself, side by side or not.

    Returns
    -------
    tuple of Chain
        Seeds outermost, rules in their order. Cost for each seed: g (T - 1) + 1 fits for g weights
        other than 1, and up to 2 (T - 1) for Algorithm 1; with a first teacher g T, up to 2 T, and one for
        the ordinary fit if Algorithm 1 or a weight of 1 asks for it.

    Raises
    ------
    TypeError, ValueError
        Before any fit, for any rule: see :func:`~sdgpu.nn.chain.distill_chain`.
    """
    if integer("steps", steps, 1) > 1:
        check_cacheable(data.train, config)
    rules = [alphas] if isinstance(alphas, str) else list(alphas)
    if not rules:
        raise ValueError("alphas is empty: give at least one rule")
    for rule in rules:
        _check_rule(rule, steps, data, taught=first_teacher is not None)
    if stacked and config.teacher != "cached":
        raise ValueError(f"stacked=True needs teacher='cached', not {config.teacher!r}")
    if stacked and config.loss == "hinton":
        raise ValueError(
            "stacked=True needs a loss with one target, not 'hinton': train one by one"
        )
    if isinstance(model, nn.Module) and seeds is not None and len(seeds) > 1:
        raise ValueError(
            f"seeds={list(seeds)} with a model that has its weights: give a name or a factory, so that "
            "each seed has its own initialisation"
        )
    if stacked and first_teacher is not None:  # which no training of its own checks
        if Teacher(first_teacher, 0.0).networks:
            check_cacheable(data.train, config)
        Teacher(first_teacher, 0.0).check(data.train, config)
        check_teacher(Teacher(first_teacher, 0.0), data.train, config)
    root = None if folder is None else Path(folder)
    chains: list[Chain] = []
    checksums: set[str] = set()
    with join(data.train.device).ending_together(data.train.device):
        for setting in [config] if seeds is None else [config.replace(seed) for seed in seeds]:
            lab = Lab(
                initial=start(model, data, setting, stem),
                data=data,
                config=setting,
                folder=None if root is None else root / f"seed-{setting.init_seed}",
                progress=progress,
                resume=resume,
                first_teacher=first_teacher,
                on_epoch=on_epoch,
            )
            if checksum(lab.initial) in checksums:
                _warn(setting)
            checksums.add(checksum(lab.initial))
            chains += _of_seed(lab, steps, rules, clip=clip, stacked=stacked)
    return tuple(chains)


def _of_seed(
    lab: Lab, steps: int, rules: Sequence[Rule], *, clip: bool, stacked: bool
) -> list[Chain]:
    """The chains of one seed, which share the ordinary fit."""
    # a stack trains a weight of 1 too
    wanted = lab.first_teacher is None or any(
        isinstance(rule, str) or (1 in np.atleast_1d(rule) and not stacked) for rule in rules
    )
    ordinary = lab.fit("step-1", None, step=1) if wanted else None
    side_by_side = [rule for rule in rules if stacked and not isinstance(rule, str)]
    stacked_chains: Iterator[Chain] = iter(())
    if side_by_side:
        stacked_chains = iter(_side_by_side(lab, ordinary, steps, side_by_side))
    chains: list[Chain] = []
    for rule in rules:
        if stacked and not isinstance(rule, str):
            chains.append(next(stacked_chains))
            continue
        folder = None if lab.folder is None else lab.folder / f"alpha-{rule_folder(rule)}"
        rule_lab = dataclasses.replace(lab, folder=folder)
        greedy = isinstance(rule, str)
        chains.append(run_chain(rule_lab, ordinary, steps=steps, alphas=rule, clip=clip and greedy))
    return chains


def _side_by_side(
    lab: Lab, ordinary: TrainResult | None, steps: int, rules: Sequence[Rule]
) -> list[Chain]:
    """All chains with given weights, one stack for each step; step 1 is shared, or has a teacher."""
    # targets of a stack are tensors, which know no items
    data = dataclasses.replace(lab.data, train=lab.data.train.remembering(by_pass=False))
    lab = dataclasses.replace(lab, data=data)
    taught = lab.first_teacher is not None
    weights = np.stack([check_weights(rule, steps, taught=taught) for rule in rules])
    # a stack is of these rules: with others it is another network, trained in another place
    place = f"{lab.prefix}stack-{rule_folder(*rules)}"
    records: list[list[StepRecord]] = [[] for _ in rules]
    models: list[list[nn.Module]] = [[] for _ in rules]
    if not taught:
        assert ordinary is not None
        for chain_records, networks in zip(records, models, strict=True):
            chain_records.append(lab.record(1, ordinary, seconds=ordinary.seconds))
            networks.append(ordinary.model)
    for step in range(1 if taught else 2, steps + 1):
        alphas = weights[:, step - 2 + taught].tolist()
        teachers = [networks[-1] if networks else lab.first_teacher for networks in models]
        results = train_stacked(
            [lab.initial] * len(rules),
            lab.data,
            _targets(lab, teachers, alphas),
            dataclasses.replace(lab.config, extendable=False),
            folder=None if lab.folder is None else lab.folder / place / f"step-{step}",
            progress=lab.progress,
            resume=lab.resume,
            stage=f"stack-step-{step}",
            on_epoch=labelled(
                lab.on_epoch,
                *(
                    lab.label(step, alpha, rule_name(rule))
                    for alpha, rule in zip(alphas, rules, strict=True)
                ),
            ),
        )
        told = f"step {step - 1}" if step > 1 else lab.teacher_name
        for chain, result in enumerate(results):
            record = lab.record(step, result, alpha=alphas[chain], seconds=result.seconds)
            records[chain].append(dataclasses.replace(record, teacher=told))
            models[chain].append(result.model)
    seed = lab.config.init_seed
    return [
        Chain(
            seed,
            rule_name(rule),
            tuple(chain_records),
            tuple(networks),
            int(not taught),
            lab.teacher_name or None,
        )
        for rule, chain_records, networks in zip(rules, records, models, strict=True)
    ]


def _targets(lab: Lab, teachers: Sequence[Any], alphas: Sequence[float]) -> torch.Tensor:
    """Mixed targets (g, n, c) of chains side by side; a teacher that several share is asked once."""
    images, config = lab.data.train, lab.config
    dtype = float_type(lab.initial)
    Y = smoothed(images.one_hot(dtype), config.label_smoothing)
    said: dict[int, torch.Tensor] = {}
    mixed = []
    for network, alpha in zip(teachers, alphas, strict=True):
        if id(network) not in said:
            teacher = Teacher(network, 0.0)
            tables = teacher.said(images, config, dtype)
            said[id(network)] = cached_predictions(
                teacher, images, config, said=tables, world=lab.world
            )
        mixed.append(mixed_target(Y, said[id(network)], alpha, hard=config.hard))
    return torch.stack(mixed)


def _warn(setting: Config) -> None:
    warnings.warn(
        f"the factory gives seed {setting.init_seed} the weights of another seed, as one does that calls "
        "make_model, which sets its own: if that is not meant, give the name of the network and stem=",
        stacklevel=3,
    )


def _check_rule(rule: Rule, steps: int, data: Any, *, taught: bool) -> None:
    if isinstance(rule, str):
        choice("alphas", rule, ("algorithm1",))
        if data.val is None or not len(data.val):
            raise ValueError("alphas='algorithm1' needs validation images: give data.val")
    else:
        check_weights(rule, steps, taught=taught)
