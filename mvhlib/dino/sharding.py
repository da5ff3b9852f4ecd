"""One model over many processes: sharded by FSDP2, its state as one process would hold it."""

from typing import TYPE_CHECKING, Any

from mvhlib.dino.model import DinoModel

if TYPE_CHECKING:
    from mvhlib.dino.pretrain import Pretraining


def shard(model: DinoModel) -> None:
    """Shard parameters over the processes: each block by itself, then the rest."""
    from torch.distributed.fsdp import fully_shard

    for block in model.backbone.blocks:
        fully_shard(block)
    # Gathered weights are let go after the forward pass, the teacher's too, which has no backward.
    fully_shard(model, reshard_after_forward=True)


def gather_sharded(run: "Pretraining") -> dict[str, Any]:
    """The state as one process would hold it, on the first process."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    student, optimizer = get_state_dict(run.student, run.optimizer, options=options)
    from torch.distributed.checkpoint.state_dict import get_model_state_dict

    teacher = get_model_state_dict(run.teacher, options=options)
    return {"step": run.state.step, "notes": run.state.notes,
            "parts": {"student": student, "teacher": teacher, "optimizer": optimizer}}


def load_sharded(run: "Pretraining") -> None:
    """Go on from the last checkpoint, each process with its own part."""
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        set_model_state_dict,
        set_state_dict,
    )

    path = run.checkpoints.latest()
    if path is None:
        return
    content = run.checkpoints.read(path)
    parts = content["parts"]
    options = StateDictOptions(full_state_dict=True)
    set_state_dict(run.student, run.optimizer, model_state_dict=parts["student"],
                   optim_state_dict=parts["optimizer"], options=options)
    set_model_state_dict(run.teacher, parts["teacher"], options=options)
    run.state.step, run.state.notes = content["step"], content["notes"]
