"""Table of networks, part 5: BERT, GPT-2 and Llama of Hugging Face, two layers each, as they are."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases import check_slopes_of
from torch import nn

from glr_dist import GLR, SiteError
from glr_dist.nn import fixed

pytestmark = [pytest.mark.montecarlo, pytest.mark.product]

transformers = pytest.importorskip("transformers", reason="transformers is not a dependency of the package")

WIDTH = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 16,
    "initializer_range": 0.3,
}
TOKENS = torch.tensor([[1, 2, 2], [0, 3, 4], [4, 4, 1]])
TEXT = {"input_ids": TOKENS, "attention_mask": torch.tensor([[1, 1, 1], [1, 1, 1], [1, 1, 0]])}
NEXT = torch.tensor([[2, 2, 1], [3, 4, 0], [4, 1, -100]])
DRAWS = r"'(bert\.embeddings\.dropout|transformer\.drop)' \(Dropout\) draws .*glr_dist\.nn\.fixed\(model\)"
FUNCTIONAL = r"draws from torch's global generator: .*functional dropout needs p = 0"
FEW = {"samples": 400, "repeats": 4, "copies": 96, "noise": 0.1}


def bert(attention_dropout: float) -> nn.Module:
    config = transformers.BertConfig(
        vocab_size=6,
        num_labels=3,
        max_position_embeddings=4,
        type_vocab_size=1,
        attention_probs_dropout_prob=attention_dropout,
        **WIDTH,
    )
    return transformers.BertForSequenceClassification(config).train()


def gpt2(attention_dropout: float) -> nn.Module:
    config = transformers.GPT2Config(
        vocab_size=6,
        n_positions=4,
        n_embd=16,
        n_layer=2,
        n_head=2,
        n_inner=16,
        use_cache=False,
        initializer_range=0.3,
        attn_pdrop=attention_dropout,
        bos_token_id=0,
        eos_token_id=0,
    )
    return transformers.GPT2LMHeadModel(config).train()


def llama() -> nn.Module:
    config = transformers.LlamaConfig(
        vocab_size=6, max_position_embeddings=4, num_key_value_heads=1, use_cache=False, **WIDTH
    )
    return transformers.LlamaForCausalLM(config).train()


def trained(*names: str) -> Callable[[nn.Module], nn.Module]:
    """Returns the remedy `fixed`, after which only the parameters of some modules are trained."""

    def remedy(model: nn.Module) -> nn.Module:
        model, _ = fixed(model)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.rpartition(".")[0] in names)
        return model

    return remedy


# name: network and its targets, layers whose gradient is checked, the first of them inside the last block
CLASSES: dict[str, tuple[Callable[..., nn.Module], torch.Tensor, tuple[str, ...]]] = {
    "BERT": (bert, torch.tensor([0, 0, 1]), ("bert.encoder.layer.1.output.dense", "bert.pooler.dense", "classifier")),
    "GPT-2": (gpt2, NEXT, ("transformer.h.1.mlp.c_proj", "transformer.ln_f", "lm_head")),
    "Llama": (llama, NEXT, ("model.layers.1.mlp.down_proj", "model.norm", "lm_head")),
}


@pytest.mark.parametrize("name", CLASSES)
def test_a_class_of_hugging_face_gets_its_gradient(name: str) -> None:
    build, y, layers = CLASSES[name]
    sites = [nn.Linear, transformers.pytorch_utils.Conv1D] if name == "GPT-2" else [nn.Linear]
    if name != "Llama":
        with pytest.raises(SiteError, match=DRAWS):
            GLR(build(0.1), 0.5, sites=sites).estimate(TEXT, y)
        with pytest.raises(SiteError, match=FUNCTIONAL):
            GLR(fixed(build(0.1))[0], 0.5, sites=sites).estimate(TEXT, y)
    torch.manual_seed(0)
    model = (llama() if name == "Llama" else build(0.0)).double()
    assert GLR(fixed(model)[0], 0.1, copies=2, sites=sites).estimate(TEXT, y).isfinite(), "all layers are sites"
    found = [site for site in layers if isinstance(model.get_submodule(site), tuple(sites))]
    check_slopes_of(trained(*layers)(model), TEXT, y, sites=sites, site_names=found, **FEW)
