"""Which fields of a training job may change in the middle of a run: neither shapes, nor the order of the data, nor the length
of the run, nor what the optimizer keeps follow from them. Nothing heavy.

The schedules are functions of the step: a run that goes on with other values is at once where a run with these would stand.
The same holds of the correction of Adam's bias: after a change of ``betas`` it is that of a run that always had the new ones.
"""

CHANGEABLE = (
    "model.dropout",
    "model.mtp_loss_coef",
    "model.router_aux_loss_coef",
    "model.router_bias_update_rate",
    "model.router_z_loss_coef",
    "training.adaptive_dropout",
    "training.betas",
    "training.clip_grad_norm",
    "training.decay_fraction",
    "training.eps",
    "training.final_betas",
    "training.focal_gamma",
    "training.label_smoothing",
    "training.learning_rate",
    "training.learning_rate_schedule",
    "training.min_learning_rate_ratio",
    "training.muon_momentum",
    "training.warmup_fraction",
    "training.warmup_steps",
    "training.weight_decay",
)


def may_change(path: str) -> bool:
    """Whether a dotted path is one of these fields, or lies inside one."""
    return any(path == field or path.startswith(f"{field}.") for field in CHANGEABLE)
