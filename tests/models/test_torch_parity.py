"""Activations and gradients against torch and torchvision, where they are installed (CI installs them)."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")

from resnet_jax.weights.references import import_torchvision  # noqa: E402

torchvision = import_torchvision()

from resnet_jax import create_model  # noqa: E402
from resnet_jax.models.norm import group_norm  # noqa: E402
from resnet_jax.models.vgg import adaptive_average_pool  # noqa: E402

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
    return with_random_norms(getattr(torchvision.models, name)(num_classes=10))


def with_random_norms(net):
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


class TorchPreActBlock(torch.nn.Module):
    """He et al. 2016, Figure 4e, with the first block and the shared activation of its appendix and released code."""

    def __init__(self, channels, convs, stride, first):
        super().__init__()
        self.first = first
        self.depth = len(convs)
        inside = channels
        for index, (out, kernel, stride_here) in enumerate(convs, start=1):
            if not (first and index == 1):
                self.add_module(f"bn{index}", torch.nn.BatchNorm2d(inside))
            conv = torch.nn.Conv2d(inside, out, kernel, stride_here, kernel // 2, bias=False)
            self.add_module(f"conv{index}", conv)
            inside = out
        self.projects = stride != 1 or inside != channels
        if self.projects:
            self.downsample = torch.nn.Sequential(torch.nn.Conv2d(channels, inside, 1, stride, bias=False))

    def forward(self, x):
        y = activated = x if self.first else torch.relu(self.bn1(x))
        for index in range(1, self.depth + 1):
            if index > 1:
                y = torch.relu(getattr(self, f"bn{index}")(y))
            y = getattr(self, f"conv{index}")(y)
        return y + (self.downsample(activated) if self.projects else x)


class TorchPreActNet(torch.nn.Module):
    """Two stages of two blocks for small images, 16 channels at first, 10 classes."""

    def __init__(self, bottleneck):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = torch.nn.BatchNorm2d(16)
        channels = 16
        for stage, width in ((1, 16), (2, 32)):
            blocks = []
            for index in range(2):
                stride = 2 if stage == 2 and index == 0 else 1
                basic = ((width, 3, stride), (width, 3, 1))
                convs = ((width, 1, 1), (width, 3, stride), (4 * width, 1, 1)) if bottleneck else basic
                blocks.append(TorchPreActBlock(channels, convs, stride, first=stage == 1 and index == 0))
                channels = convs[-1][0]
            self.add_module(f"layer{stage}", torch.nn.Sequential(*blocks))
        self.bn_last = torch.nn.BatchNorm2d(channels)
        self.fc = torch.nn.Linear(channels, 10)

    def forward(self, x):
        x = self.layer2(self.layer1(torch.relu(self.bn1(self.conv1(x)))))
        return self.fc(torch.relu(self.bn_last(x)).mean((2, 3)))


@pytest.mark.parametrize(("name", "bottleneck"), [("preact_resnet110", False), ("preact_resnet164", True)])
def test_logits_and_gradients_of_preactivation_nets_equal_torchs(name, bottleneck):
    torch.manual_seed(0)
    net = with_random_norms(TorchPreActNet(bottleneck)).double()
    variables = jax.tree.map(np.copy, to_flax(net.state_dict()))
    rng = np.random.default_rng(0)
    images, labels = rng.normal(size=(4, 9, 9, 3)), rng.integers(10, size=4)
    torch_images = torch.tensor(images).permute(0, 3, 1, 2)
    with torch.no_grad():
        expected = net.eval()(torch_images).numpy()
    torch.nn.functional.cross_entropy(net.train()(torch_images), torch.tensor(labels)).backward()

    with jax.enable_x64(True):
        model = create_model(name, num_classes=10, stage_sizes=(2, 2), shortcut="B", dtype=jnp.float64)

        @jax.jit
        @jax.grad
        def gradients(params):
            logits, _ = model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
            return -jax.nn.log_softmax(logits)[np.arange(4), labels].mean()

        ours = jax.device_get(jax.jit(model.apply, static_argnames="train")(variables, images, train=False))
        ours_of_params = jax.device_get(gradients(variables["params"]))

    np.testing.assert_allclose(ours, expected, atol=1e-5 * np.abs(expected).max())  # the head stays in float32
    theirs = to_flax({name: p.grad for name, p in net.named_parameters()})["params"]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * np.abs(b).max()), ours_of_params, theirs)


def test_group_norm_equals_torchs():
    torch.manual_seed(0)
    norm = torch.nn.GroupNorm(4, 12, eps=1e-3)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x = np.random.default_rng(0).normal(1, 3, size=(2, 5, 6, 12)).astype(np.float32)
    expected = norm(torch.tensor(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).detach().numpy()

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x):
            return group_norm(name="gn", train=True, dtype=jnp.float32, groups=4, epsilon=1e-3)(x)

    params = {"gn": {"scale": norm.weight.detach().numpy(), "bias": norm.bias.detach().numpy()}}
    np.testing.assert_allclose(Net().apply({"params": params}, x), expected, atol=1e-5)


def vgg_state(net):
    """A torchvision VGG's tensors under our names, the first dense kernel with its rows in the order (h, w, c)."""
    names, stage, conv, norm = {}, 1, 0, 0
    for index, module in enumerate(net.features):
        if isinstance(module, torch.nn.Conv2d):
            conv += 1
            names[f"features.{index}"] = f"stage{stage}_conv{conv}"
        elif isinstance(module, torch.nn.BatchNorm2d):
            norm += 1
            names[f"features.{index}"] = f"stage{stage}_bn{norm}"
        elif isinstance(module, torch.nn.MaxPool2d):
            stage, conv, norm = stage + 1, 0, 0
    names |= {"classifier.0": "fc1", "classifier.3": "fc2", "classifier.6": "fc"}
    state = {}
    for name, tensor in net.state_dict().items():
        module, leaf = name.rsplit(".", 1)
        state[f"{names[module]}.{leaf}"] = tensor
    kernel = state["fc1.weight"].reshape(-1, 512, 7, 7)
    state["fc1.weight"] = kernel.permute(0, 2, 3, 1).reshape(len(kernel), -1)
    return to_flax(state)


@pytest.mark.parametrize("name", ["vgg11", "vgg11_bn"])
def test_activations_of_vgg_equal_torchvisions(name):
    net = random_torch_net(name).eval()
    for module in net.features:
        if isinstance(module, torch.nn.Conv2d):
            torch.nn.init.uniform_(module.bias, -0.5, 0.5)
    images = np.random.default_rng(0).normal(size=(2, _SIZE, _SIZE, 3)).astype(np.float32)
    expected = {}
    x = torch.tensor(images).permute(0, 3, 1, 2)
    with torch.no_grad():
        for module in net.features:
            x = module(x)
            if isinstance(module, torch.nn.MaxPool2d):
                expected[f"stage{len(expected) + 1}"] = x.permute(0, 2, 3, 1).numpy()
        x = net.classifier[:-1](torch.flatten(net.avgpool(x), 1))
        expected |= {"pre_logits": x.numpy(), "logits": net.classifier[-1](x).numpy()}
    variables = {collection: tree for collection, tree in vgg_state(net).items() if tree}
    model = create_model(name, num_classes=10)
    structure = jax.eval_shape(lambda: model.init(jax.random.key(0), images, train=False))
    assert jax.tree.map(np.shape, variables) == jax.tree.map(np.shape, structure)
    logits, activations = model.apply(variables, images, train=False, features=True)
    assert activations.keys() == expected.keys()
    for layer, value in expected.items():
        np.testing.assert_allclose(activations[layer], value, atol=2e-5 * np.abs(value).max(), err_msg=layer)
    np.testing.assert_array_equal(logits, activations["logits"])


@pytest.mark.parametrize("shape", [(7, 7), (1, 3), (10, 15), (14, 23)])
def test_adaptive_pooling_has_torchs_bins(shape):
    x = np.random.default_rng(0).normal(size=(2, *shape, 3)).astype(np.float32)
    expected = torch.nn.AdaptiveAvgPool2d((7, 7))(torch.tensor(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    np.testing.assert_allclose(adaptive_average_pool(x, 7), expected, atol=1e-6)
