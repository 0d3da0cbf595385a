"""The loss of a model on a text, exact over tokens."""

import torch
from torch import nn

from spanwise.training.data import IGNORED, Blocks


@torch.no_grad()
def loss_on(model: nn.Module, blocks: Blocks, *, batch: int, autocast: bool = False) -> float:
    """Mean negative log likelihood of the learned tokens, in nats per token.

    Every token weighs the same whatever its sequence or batch, so the result does not depend on
    the batch size. Under several processes each takes a share, and all get the same figure.

    Args:
        model: A causal language model of transformers; its mode is restored afterwards.
        blocks: Packed sequences.
        batch: Sequences in a forward pass.
        autocast: Compute in bfloat16 as mixed-precision training does.

    Raises:
        ValueError: If `blocks` is empty.
    """
    if not len(blocks):
        raise ValueError("there is no sequence to evaluate on.")
    device = next(model.parameters()).device
    rank, world = _place()
    was_training = model.training
    model.eval()
    total, tokens = 0.0, 0
    try:
        for rows in blocks.take(slice(rank, None, world)).batches(batch):
            labels = rows["labels"].to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=autocast):
                loss = model(input_ids=rows["input_ids"].to(device), labels=labels).loss
            # The model averages over what it predicts: every token but a sequence's first.
            count = int((labels[:, 1:] != IGNORED).sum())
            if count:
                total += float(loss) * count
                tokens += count
    finally:
        model.train(was_training)
    if world > 1:
        sums = torch.tensor([total, tokens], dtype=torch.float64, device=device)
        torch.distributed.all_reduce(sums)
        total, tokens = sums.tolist()
    return total / tokens


def _place() -> tuple[int, int]:
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank(), torch.distributed.get_world_size()
    return 0, 1
