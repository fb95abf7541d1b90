"""Ways to adapt a backbone to a task with labels."""

from __future__ import annotations

METHODS = {
    "full": "fine-tune all weights, with smaller steps for earlier layers",
    "linear": "train the task's head; the backbone stays as it is",
    "mlp3": "train a head of three layers",
    "partial1": "train the last block",
    "bitfit": "train the bias vectors",
    "lora": "train low-rank updates of the attention's query and value",
    "adapter": "train bottlenecks beside the MLPs (AdaptFormer)",
    "ssf": "train a scale and a shift after every layer",
    "vp": "train values that are added to the tokens",
    "vpt": "train prompt tokens (visual prompt tuning)",
    "ept": "train logits in every softmax (embedded prompt tuning)",
}
"""Name -> what it does, for the command line; `vesalius.adapt.methods` has their parts."""

ON_SAM = {
    "masam": "vesalius.training.sam_verbs:adapt_masam",
    "sam3d": "vesalius.training.sam_verbs:adapt_sam3d",
    "transunet": "vesalius.training.transunet_verbs:adapt_transunet",
}
"""Ways to adapt Segment Anything to volumes, and the baseline beside them, with options of their own -> what runs."""
