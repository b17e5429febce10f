"The GPT: logits depend on the past alone, and a block is its equation."
import torch
import torch.nn.functional as F

from miniai.models.gpt import GPT, Block


def test_logits_have_a_row_for_each_token_and_see_nothing_that_follows():
    net, ids = GPT(11, context=8, width=12, heads=3), torch.randint(11, (2, 8))
    out = net(ids)
    assert out.shape == (2, 8, 11)
    changed = ids.clone()
    changed[:, 5:] = (ids[:, 5:] + 1) % 11
    again = net(changed)
    torch.testing.assert_close(again[:, :5], out[:, :5])
    assert not torch.isclose(again[:, 5], out[:, 5]).all()
    torch.testing.assert_close(net(ids[:, :5]), out[:, :5])


def test_a_block_is_causal_attention_and_a_network_added_to_their_inputs():
    block, x = Block(6, heads=2), torch.randn(1, 4, 6)
    normed, out = F.layer_norm(x, [6]), []
    q, k, v = (normed @ w.T for w in block.qkv.weight.split(6))
    for h in (slice(0, 3), slice(3, 6)):
        scores = (q[..., h] @ k[..., h].mT/3**.5)[0]
        for i in range(4): scores[i, i + 1:] = -torch.inf
        out.append(scores.softmax(1) @ v[0, :, h])
    y = x + torch.cat(out, 1) @ block.out.weight.T
    first, second = block.mlp[0], block.mlp[2]
    expected = y + F.gelu(F.layer_norm(y, [6]) @ first.weight.T + first.bias) @ second.weight.T + second.bias
    torch.testing.assert_close(block(x), expected)
