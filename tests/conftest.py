"""One torch thread; the types and shapes that the tensor parts of the package declare are checked in use."""

import torch
from jaxtyping import install_import_hook

torch.set_num_threads(1)

# Not listed: what takes bad input from people, checks it itself, and is tested with values of wrong types.
install_import_hook(
    [
        "peira.experience.scan",
        "peira.experience.batch",
        "peira.experience.replay",
        "peira.environments",
        "peira.policies",
        "peira.sources",
        "peira.credit",
        "peira.learners",
        "peira.evaluation",
        "peira.runs.ledger",
    ],
    # The tower lets an int stand where a float is asked for.
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)
