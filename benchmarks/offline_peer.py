"""d3rlpy's side of benchmarks/offline.py, run by the Python of the environment that benchmarks/scope_rl_peer.py makes.

    PEER/bin/python benchmarks/offline_peer.py LOG.npz METHOD

LOG.npz holds the columns of a log of whole episodes; METHOD is td3bc or iql. Each line on standard input is a number of
updates to do; the answer is a line with the seconds they took on the wall and of processor time. Sampling is part of an
update, d3rlpy's logging and saving are not.
"""

from __future__ import annotations

import json
import sys
import time

import d3rlpy
import numpy as np
import torch


def algorithm(method: str, dataset: d3rlpy.dataset.ReplayBuffer):
    """d3rlpy's defaults with the sizes of the benchmark: 256-256, batches of 256, standardised observations."""
    config = {"td3bc": d3rlpy.algos.TD3PlusBCConfig, "iql": d3rlpy.algos.IQLConfig}[method]
    made = config(batch_size=256, observation_scaler=d3rlpy.preprocessing.StandardObservationScaler()).create(
        device="cpu"
    )
    made.config.observation_scaler.fit_with_transition_picker(dataset.episodes, dataset.transition_picker)
    made.build_with_dataset(dataset)
    return made


def main(path: str, method: str) -> None:
    torch.set_num_threads(1)
    d3rlpy.logging.logger.set_log_context()
    columns = np.load(path)
    dataset = d3rlpy.dataset.MDPDataset(
        observations=columns["observation"],
        actions=columns["action"],
        rewards=columns["reward"],
        terminals=columns["terminated"].astype(np.float32),
        timeouts=columns["truncated"].astype(np.float32),
    )
    made = algorithm(method, dataset)
    print(json.dumps({"d3rlpy": d3rlpy.__version__, "torch": torch.__version__}), flush=True)
    for line in sys.stdin:
        wall, processor = time.perf_counter(), time.process_time()
        for _ in range(int(line)):
            made.update(dataset.sample_transition_batch(256))
        print(json.dumps([time.perf_counter() - wall, time.process_time() - processor]), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
