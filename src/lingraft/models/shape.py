"""What of a model decides how much it computes and holds: sizes from its configuration, and what of it trains.

FLOPs count a multiplication and an addition as two. A matrix of N parameters costs 2 N a token forward; backward 2 N
for the gradient of its input, where something below it trains, and 2 N for its own, where it trains: 6 N in all
(Kaplan et al. 2020, arXiv 2001.08361). Attention's two products cost 4 L^2 times the width of all heads for each row of
L tokens and layer forward, twice that backward (Chowdhery et al. 2022, arXiv 2204.02311, appendix B), future tokens
included. The head runs on the positions that predict something. Norms, softmax and the optimiser are left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from lingraft.models.four_bits import is_in_four_bits, parameter_count
from lingraft.models.fused_loss import can_be_fused
from lingraft.models.layers import layer_of, tied_parameters


@dataclass(frozen=True, slots=True)
class ModelShape:
    """Sizes of a causal language model, and what of it trains.

    Attributes:
        parameters: All; tied ones count once.
        trained: Of these, how many train.
        layers: Decoder layers.
        reached_layers: Of these, how many a gradient runs through: from the lowest that trains upwards.
        matrices: Parameters of the layers' matrices that a token meets: of a mixture's experts those it is sent to.
        reached_matrices: Of these, those in the reached layers.
        trained_matrices: Of these, those that train.
        head: Parameters of the output head.
        trains_head: Whether it trains.
        is_tied: Whether the head is the embedding.
        hidden: Width of the hidden states.
        heads: Heads of attention.
        attention: Width of all heads together.
        keys: Width of all heads of the keys together.
        intermediate: Width inside of the MLP, of all experts that a token is sent to.
        is_gated: Whether the MLP multiplies two such widths.
        normalised: Width of all that a layer's norms normalise, together.
        vocabulary: Rows of the embedding.
        largest_layer: Parameters of the largest layer.
        outside: Parameters outside of the layers: embedding, head, last norm.
        ranks: Of a layer's adapters (LoRA), together; 0: it has none.
        in_four_bits: Parameters that are held in 4 bits.
        has_plain_head: Whether its loss can be taken without the logits of all positions (`models.fused_loss`).
    """

    parameters: int
    trained: int
    layers: int
    reached_layers: int
    matrices: float
    reached_matrices: float
    trained_matrices: float
    head: int
    trains_head: bool
    is_tied: bool
    hidden: int
    heads: int
    attention: int
    keys: int
    intermediate: int
    is_gated: bool
    normalised: int
    vocabulary: int
    largest_layer: int
    outside: int
    ranks: int
    in_four_bits: int
    has_plain_head: bool

    def forward_flops(self, tokens: float, pairs: float, positions: float) -> float:
        """Return the FLOPs of a forward pass.

        Args:
            tokens: That are computed, padding included.
            pairs: Sum over rows of the squared tokens of the row.
            positions: At which the head predicts.
        """
        return self._layers_forward(tokens, pairs) + 2 * self.head * positions

    def training_flops(
        self, tokens: float, pairs: float, positions: float, *, checkpointing: bool = False
    ) -> float:
        """Return the FLOPs of forward and backward passes; see `forward_flops`.

        Args:
            tokens: See there.
            pairs: See there.
            positions: See there.
            checkpointing: The layers run forward once more.
        """
        again = self._layers_forward(tokens, pairs) if checkpointing else 0.0
        inputs = 2 * self.reached_matrices * tokens + 8 * self.attention * self.reached_layers * pairs
        weights = 2 * self.trained_matrices * tokens
        head = 2 * self.head * positions * (1 + self.trains_head)
        return self.forward_flops(tokens, pairs, positions) + again + inputs + weights + head

    def _layers_forward(self, tokens: float, pairs: float) -> float:
        return 2 * self.matrices * tokens + 4 * self.attention * self.layers * pairs


def shape_of(model: Any, trainable: Collection[str] | None = None) -> ModelShape:
    """Return the shape of a model, which may be one without memory for its weights (`empty_model`).

    Args:
        model: A causal language model, also one wrapped by PEFT.
        trainable: Names of the parameters that train; None: all.
    """
    config = model.config.get_text_config()
    parameters = dict(model.named_parameters())
    sizes = {name: parameter_count(one) for name, one in parameters.items()}
    trained = set(parameters) if trainable is None else set(trainable) & set(parameters)
    layer = {name: place for name in parameters if (place := layer_of(name)) is not None}
    layers = len({*layer.values()})
    embedding, of_head = (
        _outside(model.get_input_embeddings(), model),
        _outside(model.get_output_embeddings(), model),
    )
    # A gradient runs down to the lowest part that trains; of what is outside of the layers, the embedding is below.
    low = min((layer.get(name, 0 if name in embedding else layers) for name in trained), default=layers)
    experts = _first(config, "num_local_experts", "num_experts", "n_routed_experts")
    chosen = _first(config, "num_experts_per_tok", "num_experts_per_token") or 1

    def met(name: str) -> float:
        shape = parameters[name].shape
        is_stacked = len(shape) == 3 and shape[0] == experts  # JetMoE's names do not say what they are
        is_of_experts = is_stacked or (".experts." in name and ".router." not in name)
        share = chosen / experts if experts and is_of_experts else 1.0
        return float(sizes[name]) * share

    matrices = [name for name in layer if parameters[name].dim() > 1]
    head = model.get_output_embeddings()
    heads = _first(config, "num_attention_heads") or 0  # a state space model has none
    width = int(getattr(config, "head_dim", None) or config.hidden_size // max(1, heads))
    attention, keys = heads * width, int(getattr(config, "num_key_value_heads", None) or heads) * width
    lowest = min(layer.values(), default=0)
    norms = [
        name for name in layer if layer[name] == lowest and name.endswith("weight") and name not in matrices
    ]
    of_heads = {"q_norm": attention, "k_norm": keys}  # of each head by itself, or of all together
    normalised = sum(of_heads.get(name.split(".")[-2], int(config.hidden_size)) for name in norms)
    inner = _first(config, "moe_intermediate_size") if experts else None
    inner = inner or _first(config, "intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size")
    reached = [name for name in matrices if layer[name] >= low]
    of_layers = Counter[int]()
    for name, place in layer.items():
        of_layers[place] += sizes[name]
    return ModelShape(
        parameters=sum(sizes.values()),
        trained=sum(sizes[name] for name in trained),
        layers=layers,
        reached_layers=layers - low,
        matrices=sum(map(met, matrices)),
        reached_matrices=sum(map(met, reached)),
        trained_matrices=sum(met(name) for name in matrices if name in trained),
        head=int(head.weight.numel()),
        trains_head=bool(of_head & trained),
        is_tied=bool(of_head & embedding),
        hidden=int(config.hidden_size),
        heads=heads,
        attention=attention,
        keys=keys,
        intermediate=(inner or 4 * int(config.hidden_size)) * (chosen if experts else 1),
        is_gated=any("gate_" in name for name in layer),
        normalised=normalised,
        vocabulary=int(model.get_input_embeddings().weight.shape[0]),
        largest_layer=max(of_layers.values(), default=0),
        outside=sum(size for name, size in sizes.items() if name not in layer),
        ranks=sum(
            int(one.shape[0])
            for name, one in parameters.items()
            if ".lora_A." in name and layer.get(name) == lowest
        ),
        in_four_bits=sum(sizes[name] for name, one in parameters.items() if is_in_four_bits(one)),
        has_plain_head=can_be_fused(model),
    )


def _outside(module: Any, model: Any) -> frozenset[str]:
    """Return the names of a module's parameters in the model, also those that others share with it."""
    own = {id(one) for one in module.parameters()}
    found = {name for name, one in model.named_parameters(remove_duplicate=False) if id(one) in own}
    return frozenset(found.union(*(group for group in tied_parameters(model) if group & found)))


def _first(config: Any, *names: str) -> int | None:
    found = (getattr(config, name, None) for name in names)
    return next((int(one) for one in found if isinstance(one, int) and one > 0), None)
