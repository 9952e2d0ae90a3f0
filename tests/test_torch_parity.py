"""Activations and gradients against torchvision, where torch is installed (CI installs it)."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

# A torchvision wheel without compiled operators imports once the operators that it wants to register exist.
_library = torch.library.Library("torchvision", "DEF")
_library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
_library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
try:
    torchvision = pytest.importorskip("torchvision")
except RuntimeError:  # a wheel with operators of its own
    del _library
    torchvision = pytest.importorskip("torchvision")

from resnet_jax import create_model  # noqa: E402

_SIZE = 64  # the last stage is 2x2; enough to see padding and strides


def flax_name(torch_name: str) -> tuple[str, ...]:
    """`layer1.0.downsample.0.weight` -> ("stage1_block1", "downsample_conv")."""
    *path, _ = torch_name.replace("downsample.0", "downsample_conv").replace("downsample.1", "downsample_bn").split(".")
    if path[0].startswith("layer"):
        stage, block, *rest = path
        path = [f"stage{stage[-1]}_block{int(block) + 1}", *rest]
    return tuple(path)


def to_flax(torch_tensors: dict) -> dict:
    """torch's tensors by name as flax variables {"params", "batch_stats"}."""
    variables = {"params": {}, "batch_stats": {}}
    for name, tensor in torch_tensors.items():
        if name.endswith("num_batches_tracked"):
            continue
        array, leaf = tensor.detach().numpy(), name.rsplit(".", 1)[1]
        collection, leaf = {
            "running_mean": ("batch_stats", "mean"),
            "running_var": ("batch_stats", "var"),
            "bias": ("params", "bias"),
            "weight": ("params", "scale" if array.ndim == 1 else "kernel"),
        }[leaf]
        if array.ndim == 4:
            array = array.transpose(2, 3, 1, 0)
        elif array.ndim == 2:
            array = array.T
        node = variables[collection]
        for part in flax_name(name):
            node = node.setdefault(part, {})
        node[leaf] = array
    return variables


def random_torch_net(name):
    torch.manual_seed(0)
    net = getattr(torchvision.models, name)(num_classes=10)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            torch.nn.init.uniform_(module.bias, -0.5, 0.5)
            torch.nn.init.uniform_(module.running_mean, -0.5, 0.5)
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    return net


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_activations_equal_torchvisions_layer_by_layer(name):
    net = random_torch_net(name).eval()
    images = np.random.default_rng(0).normal(size=(2, _SIZE, _SIZE, 3)).astype(np.float32)
    expected = {}
    x = torch.tensor(images).permute(0, 3, 1, 2)
    with torch.no_grad():
        x = expected["stem"] = net.maxpool(net.relu(net.bn1(net.conv1(x))))
        for stage in (1, 2, 3, 4):
            x = expected[f"stage{stage}"] = getattr(net, f"layer{stage}")(x)
        logits = net.fc(x.mean((2, 3)))
    model = create_model(name, num_classes=10)
    variables = to_flax(net.state_dict())
    structure = jax.eval_shape(lambda: model.init(jax.random.key(0), jnp.zeros((1, _SIZE, _SIZE, 3)), train=False))
    assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, structure)
    ours, activations = model.apply(variables, images, train=False, features=True)
    for layer, value in expected.items():
        value = value.permute(0, 2, 3, 1).numpy()
        np.testing.assert_allclose(activations[layer], value, atol=2e-5 * np.abs(value).max(), err_msg=layer)
    np.testing.assert_allclose(ours, logits, atol=2e-5 * np.abs(logits.numpy()).max())


def test_gradients_and_running_statistics_of_a_training_step_equal_torchvisions():
    # In float64 on both sides: in float32 a ReLU that is on in one and off in the other moves gradients by a percent.
    net = random_torch_net("resnet18").train().double()
    variables = jax.tree.map(np.copy, to_flax(net.state_dict()))  # torch updates its own in place
    rng = np.random.default_rng(0)
    images, labels = rng.normal(size=(8, _SIZE, _SIZE, 3)), rng.integers(10, size=8)
    logits = net(torch.tensor(images).permute(0, 3, 1, 2))
    torch.nn.functional.cross_entropy(logits, torch.tensor(labels)).backward()

    with jax.enable_x64(True):
        model = create_model("resnet18", num_classes=10, dtype=jnp.float64)

        def loss(params):
            logits, updated = model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
            return -jax.nn.log_softmax(logits)[np.arange(8), labels].mean(), updated["batch_stats"]

        gradients, batch_stats = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
        gradients, batch_stats = jax.device_get((gradients, batch_stats))

    def close(ours, theirs):
        np.testing.assert_allclose(ours, theirs, atol=1e-5 * np.abs(theirs).max())  # the head stays in float32

    jax.tree.map(close, gradients, to_flax({name: p.grad for name, p in net.named_parameters()})["params"])
    theirs = to_flax(net.state_dict())["batch_stats"]
    jax.tree.map_with_path(lambda path, a, b: path[-1].key != "mean" or close(a, b), batch_stats, theirs)
    # torch's running variance is of n - 1, Flax's of n: for the stem n = 8 * 32 * 32.
    n = 8 * (_SIZE // 2) ** 2
    before, after = (stats["bn1"]["var"] for stats in (variables["batch_stats"], batch_stats))
    close(0.9 * before + (after - 0.9 * before) * n / (n - 1), theirs["bn1"]["var"])
