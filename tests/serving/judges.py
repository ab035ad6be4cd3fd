"""Gates of tests: what runs in a process of its own has to be found by name."""

from peira.evaluation.decisions import GateDecision


def agree(folder, options, candidate, since):
    return GateDecision(True, [f"{candidate} is better since {since:g}"], {})


def refuse(folder, options, candidate, since):
    return GateDecision(False, ["worse by 0.1", "too few rows"], {})


def die(folder, options, candidate, since):
    import os

    os._exit(3)
