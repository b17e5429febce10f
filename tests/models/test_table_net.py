"The network for tables."
import pytest
import torch
from torch import nn

from miniai.models.table_net import TableNet


@pytest.mark.parametrize(('outputs', 'shape'), [(1, (5,)), (3, (5, 3))])
@pytest.mark.parametrize('categories', [(), (4, 2)])
def test_its_output_is_the_sum_of_a_linear_model_and_a_network_over_numbers_and_embeddings(outputs, shape, categories):
    net = TableNet(2, categories, outputs).eval()
    nn.init.normal_(net.net[-1].weight)
    x, c = torch.randn(5, 2), torch.stack([torch.randint(n, (5,)) for n in categories], 1) if categories else None
    vectors = [e.weight[c[:, i]] for i, e in enumerate(net.embeddings)]
    joined = torch.cat([x, *vectors], 1)
    expected = nn.functional.linear(joined, net.linear.weight, net.linear.bias) + net.net(joined)
    out = net(x, c) if categories else net(x)
    assert out.shape == shape
    torch.testing.assert_close(out, expected.reshape(shape))


def test_it_starts_as_the_linear_model():
    net, x = TableNet(3, outputs=2), torch.randn(4, 3)
    torch.testing.assert_close(net.eval()(x), net.linear(x) + net.net[-1].bias)


def test_numbers_without_the_categories_are_an_error_that_says_what_to_use():
    with pytest.raises(TypeError, match=r'use Learner with TrainCB\(n_inp=2\)'): TableNet(3, [4])(torch.randn(2, 3))
