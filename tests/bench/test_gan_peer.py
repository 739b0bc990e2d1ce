"""The peer of the comparison of GANs is what people write, on the same weights, and learns the same."""

import pytest
import torch
from torch import nn

from etude.bench import gan as bench
from etude.generative.gan import Config
from etude.nn import twice


@pytest.mark.parametrize("norm", ["batch", "layer", "none"])
def test_the_peer_has_torchs_own_convolutions_and_our_weights(norm):
    torch.manual_seed(0)
    ours = Config(latent=4, channels=3, side=16, width=4, critic_norm=norm).build()
    theirs = bench.as_usually_written(ours)
    assert not any(isinstance(module, twice.Conv2d) for module in theirs.modules())
    assert any(isinstance(module, twice.Conv2d) for module in ours.modules()) == (norm != "batch")
    assert theirs.state_dict().keys() == ours.state_dict().keys()
    for name, value in theirs.state_dict().items():
        assert torch.equal(value, ours.state_dict()[name]), name
    x = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(theirs.critic(x), ours.critic(x))
    for a, b in zip(theirs.parameters(), ours.parameters()):
        assert a.data_ptr() != b.data_ptr()
    assert [type(module) for module in theirs.critic if isinstance(module, nn.Conv2d)] == [nn.Conv2d] * 3
