"""Every key of a config, its default and its meaning: the default experiment, ResNet-20 on handwritten digits.

Other experiments start from this one and set only the differences. The config is locked: a misspelt key is an error.
"""

import ml_collections
from ml_collections.config_dict import FieldReference, placeholder


def get_config() -> ml_collections.ConfigDict:
    config = ml_collections.ConfigDict()
    config.seed = 0  # of initialisation, order and augmentation
    # Weights to begin with: a run, the folder of a step, a .safetensors of ours, or the file of another library
    config.init_from = placeholder(str)
    config.head = "keep"  # of these weights; or "new": random, for other classes
    config.freeze = ""  # regular expression on paths like stage1_block1/conv1/kernel: these weights stay as they are
    config.dtype = "float32"  # of the computation: float32 or bfloat16; weights and statistics stay float32
    config.model = _model()
    config.norm = _norm()
    config.data = _data()
    config.augment = _augment()
    config.train = _train()
    config.optim = _optim()
    config.parallel = _parallel()
    config.eval = _eval()
    config.diagnostics = _diagnostics()
    config.checkpoint = _checkpoint()
    config.log = _log()
    return config.lock()


def _model() -> ml_collections.ConfigDict:
    model = ml_collections.ConfigDict()
    model.name = "resnet20"  # a key of resnet_jax.models.MODELS
    model.num_classes = placeholder(int)  # default: what the data have; a check if given
    model.shortcut = placeholder(str)  # none, A, B, C, highway or skipinit; default: the model's own
    model.stem = placeholder(str)  # imagenet or small; default: the model's own
    model.downsample = "stride"  # or "blur": strided convolutions see a blurred input
    model.stochastic_depth = 0.0  # probability that a step drops the last block's branch; less for those before
    model.zero_init_last_scale = False  # residual blocks begin as the identity
    model.scan_blocks = False  # equal blocks as one in a loop: ResNet-110 compiles 4 times as fast, 1202 at all
    model.remat = False  # norms and activations computed again: half the memory with scan_blocks, else the same on CPUs
    return model


def _norm() -> ml_collections.ConfigDict:
    norm = ml_collections.ConfigDict()
    norm.name = placeholder(str)  # batch, group or none (a learned shift alone); default: the model's own
    norm.groups = 32  # of group norm; must divide every number of channels
    norm.scope = "local"  # batch statistics over one device (local), all (global) or groups of devices (group)
    norm.group_size = 1  # devices per group
    norm.momentum = 0.9  # share of the old running value kept at each step
    norm.epsilon = placeholder(float)  # default: the model's own, 1e-5 but in nets of Keras and big_vision
    return norm


def _data() -> ml_collections.ConfigDict:
    data = ml_collections.ConfigDict()
    # A key of resnet_jax.data.DATASETS; or, for the stream: imagenet2012, imagenette, oxford_iiit_pet, any other
    # image classification set of TensorFlow Datasets as tfds:BUILDER, folder, tar, or synthetic:EXAMPLES:CLASSES
    data.name = "digits"
    data.data_dir = placeholder(str)  # of the data; default: TensorFlow Datasets' own
    data.loader = "device"  # the data set lies on the device; or "stream": it is read and decoded while training
    # Held out of the training split: a number of examples, or below 1 a share. 0: train on all, no best checkpoint
    data.validation_size = 180.0
    data.use_validation_split = True  # of a folder that has one besides the test split: then none is held out
    data.test_size = 0.2  # of a folder that is not divided into splits: a number of images, or a share
    data.balanced = False  # draw each class equally often, rare ones again and again; else each example once an epoch
    data.verify = "off"  # of the stream, at the start, all splits: read the headers of all images, or decode all (full)
    data.image_size = placeholder(int)  # resize to this square; default: as stored
    # By the data set's mean and std; "pixel_mean": minus the mean training image; "weights": as for those of init_from
    data.normalization = "channel"
    data.workers = "threads"  # of the stream: threads, or processes where Python itself keeps threads waiting
    data.num_workers = placeholder(int)  # on each host; default: as many as there are CPUs
    data.max_corrupt = 0.001  # of the stream: max share of corrupt images; an epoch that has begun counts as a whole
    return data


def _augment() -> ml_collections.ConfigDict:
    augment = ml_collections.ConfigDict()
    augment.view = "center"  # of the stream, what is cut from an image: the centre, random_resized or scale_jitter
    augment.area = (0.08, 1.0)  # random_resized: share of the image
    augment.short_sides = (256, 480)  # scale_jitter: of the image that a square of data.image_size is cut from
    augment.sizes = ()  # progressive resizing, like ((0.0, 128), (0.5, 192)): data.image_size from a part of the run on
    augment.repeats = 1  # how often an example stands in a batch, each time with another crop
    augment.policy = "none"  # or randaugment, autoaugment, trivialaugment
    augment.num_ops = 2  # randaugment: operations one after another
    augment.magnitude = 9.0  # randaugment: 0 to 30
    augment.magnitude_std = 0.0  # randaugment: of a normal distribution around the magnitude
    augment.jitter = (0.0, 0.0, 0.0, 0.0)  # up to how much of brightness, contrast, saturation (shares) and hue (turns)
    augment.lighting = 0.0  # standard deviation of colour noise along ImageNet's principal components
    augment.flip = False  # left to right, half of the time
    augment.pad_crop = 1  # pixels of padding before a random crop of the old size
    augment.cutout = 0  # side of the square hole, pixels
    augment.erasing = 0.0  # probability of a random rectangular hole
    augment.mixup = 0.0  # alpha; 0 for off
    augment.cutmix = 0.0  # alpha; 0 for off. Both on: either, with equal chance
    return augment


def _train() -> ml_collections.ConfigDict:
    train = ml_collections.ConfigDict()
    train.batch_size = 128  # global, over all devices
    train.steps = placeholder(int)
    train.epochs = FieldReference(30.0)  # length of the run: epochs, or steps; the other is None
    train.loss = "softmax"  # cross-entropy; or "bce": binary cross-entropy of each class
    train.bce_threshold = placeholder(float)  # bce: mixed targets above it count as 1, others as 0; default: as mixed
    train.class_weights = "none"  # in the loss: inverse (of the frequency, 1 on average), or numbers like "1,2.5,1"
    train.label_smoothing = 0.0
    train.grad_accum_steps = 1  # microbatches that a device's batch is worked through in
    train.ema_decay = 0.0  # of the moving average of the weights, which is evaluated too; 0 for none
    # At a number that is not finite: abort; skip the update, if no more than max_nonfinite in a row are; or rollback to
    # the weights of the last checkpoint, and leave out the batches since then, at most max_nonfinite times
    train.nonfinite = "abort"
    train.max_nonfinite = 10
    train.watchdog_seconds = 3600.0  # print all stacks and exit if no step was made for so long; 0: wait for ever
    train.steps_per_call = 1  # K steps in one program: for small nets on accelerators; slow on CPU
    return train


def _optim() -> ml_collections.ConfigDict:
    optim = ml_collections.ConfigDict()
    optim.name = "sgd"  # sgd, adamw, lars, lamb or muon
    optim.lr = 0.1  # after the warmup
    optim.lr_scaling = "none"  # or "linear": lr (alone) is for a batch of 256 and grows with it
    optim.momentum = 0.9
    optim.nesterov = False
    optim.b1 = 0.9
    optim.b2 = 0.999
    optim.weight_decay = 1e-4
    optim.weight_decay_mode = "l2"  # part of the gradient (l2) or beside it (decoupled)
    optim.weight_decay_params = ".*"  # regular expression on paths like stage1_block1/conv1/kernel
    # Pairs of a regular expression on paths and a factor of the rate, like (("^stage1", 0.1),); the first that is found
    optim.lr_factors = ()
    optim.clip_norm = 0.0  # global norm of the gradient; 0 for none
    optim.schedule = "cosine"  # constant, step, cosine, linear, polynomial or triangular
    optim.warmup_epochs = 0.0  # length of the warmup: set epochs or steps
    optim.warmup_steps = 0
    optim.warmup_shape = "linear"  # or constant
    optim.warmup_from = 0.0  # learning rate at the first step
    optim.end_lr = 0.0
    optim.milestones = (0.5, 0.75)  # step: fractions of the run
    optim.factor = 0.1  # step: at each milestone
    optim.power = 2.0  # polynomial
    optim.peak_fraction = 0.2  # triangular: fraction of the run
    return optim


def _parallel() -> ml_collections.ConfigDict:
    parallel = ml_collections.ConfigDict()
    parallel.devices = placeholder(int)  # how many; default: all
    parallel.wrapper = "shard_map"  # or pmap, on one host
    # One process of several: TPU pods, SLURM, MPI, Kubernetes, --coordinator. True: refuse to train alone; False: train
    # alone whatever there is; default: as found
    parallel.distributed = placeholder(bool)
    parallel.check_every_steps = 100  # compare the state on all devices, which is to be the same
    parallel.heartbeat_seconds = 30.0  # a process without a sign of life for so long is lost, and the job ends
    return parallel


def _eval() -> ml_collections.ConfigDict:
    evaluation = ml_collections.ConfigDict()
    evaluation.batch_size = 1000  # global; rounded up to a multiple of the devices
    evaluation.max_examples = placeholder(int)  # of each split, evenly spread: a quick look, no result; default: all
    evaluation.image_size = placeholder(int)  # of the stream; default: data.image_size
    evaluation.crop_fraction = 0.875  # of the stream: the centre's share of the resized short side
    evaluation.interpolation = "bilinear"  # of the stream, antialiased; or bicubic
    evaluation.every_epochs = 1.0  # evaluate on the validation split and save a checkpoint
    evaluation.test_curve = False  # score the test split too, for its curve alone: it chooses nothing
    return evaluation


def _diagnostics() -> ml_collections.ConfigDict:
    diagnostics = ml_collections.ConfigDict()
    diagnostics.layers = False  # every log.every_steps: responses, gradients, branches and norm scales of each block
    diagnostics.lesions = False  # after training: accuracy without each block, and with neighbours swapped
    diagnostics.precise_statistics = False  # after training: accuracy with exact batch statistics of the training set
    return diagnostics


def _checkpoint() -> ml_collections.ConfigDict:
    checkpoint = ml_collections.ConfigDict()
    checkpoint.keep = 2  # the last so many, and the best
    checkpoint.on_error = "stop"  # where a save fails, as on a full disk; or "continue" without it
    checkpoint.every_minutes = 10.0  # besides those of evaluations, after so many minutes without one; 0 for none
    checkpoint.best_metric = "accuracy"  # on the validation split: accuracy, top5, loss; or ema_accuracy, ...
    return checkpoint


def _log() -> ml_collections.ConfigDict:
    log = ml_collections.ConfigDict()
    log.every_steps = 100  # and at every evaluation
    return log
