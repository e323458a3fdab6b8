"""Known ways to spoil a benchmark, tried on a real trial: each is prevented, or flagged with its reason.

The numbers in brackets count the lines of the list that `docs/validity.md` reproduces. Every attack runs a second time
with its guard taken out, and then gets through: so it is that guard that holds.
"""

from __future__ import annotations

import pytest

# name -> (code in the class's body, code before the imports, guards that must fire with their severity)
ATTACKS: dict[str, tuple[str, str, dict[str, str]]] = {
    "[10] a thread trains on while the clock stands": (
        """
        def training_step(self, batch):
            super().training_step(batch)
            if self.updates == 1:
                self.running = True
                self.thread = threading.Thread(target=self.train_on, name="trainer", daemon=True)
                self.thread.start()

        def train_on(self):
            while self.running:
                with torch.no_grad():
                    for parameter in self.model.parameters():
                        parameter.mul_(0.9999)

        def resume_training(self):
            time.sleep(0.02)
            self.running = False
            self.thread.join()
        """,
        "",
        {"weights_digest": "void", "quiet": "void", "threads": "void"},
    ),
    "[10] a thread refines the optimizer's state": (
        """
        def training_step(self, batch):
            super().training_step(batch)
            if self.updates == 1:
                self.running = True
                self.thread = threading.Thread(target=self.refine, name="refiner", daemon=True)
                self.thread.start()

        def refine(self):
            while self.running:
                for state in list(self.optimizer.state.values()):
                    state["momentum_buffer"].mul_(0.999)

        def resume_training(self):
            time.sleep(0.02)
            self.running = False
            self.thread.join()
        """,
        "",
        {"state_digest": "void", "quiet": "void", "threads": "void"},
    ),
    "[10] a child process works while the clock stands": (
        """
        def training_step(self, batch):
            super().training_step(batch)
            if self.updates == 1:
                self.child = subprocess.Popen([sys.executable, "-c", "while True: pass"])
                time.sleep(0.1)

        def resume_training(self):
            self.child.kill()
            self.child.wait()
        """,
        "",
        {"processes": "void", "spawned": "void"},
    ),
    "[12] the clock is slowed down": (
        """
        def training_step(self, batch):
            super().training_step(batch)
            time.sleep(0.05)
        """,
        """
        from algoperf_torch.runner import clock
        real = clock.perf_counter
        clock.perf_counter = lambda: real() / 10
        import time as _time
        _time.sleep(0)
        """,
        {"identity": "void", "clock": "void"},
    ),
    "[12] synchronisation is switched off": (
        """
        """,
        """
        import torch
        torch.cuda.synchronize = lambda device=None: None
        """,
        {"identity": "void"},
    ),
    "[12] the metric is replaced": (
        """
        """,
        """
        from algoperf_torch.workloads.digits.workload import DigitsWorkload
        original = DigitsWorkload.metrics
        def perfect(self, sums, split):
            return {**original(self, sums, split), "accuracy": 0.99}
        DigitsWorkload.metrics = perfect
        """,
        {"identity": "void"},
    ),
    "[12] the loss of the library is replaced": (
        """
        def training_step(self, batch):
            super().training_step(batch)
            original = functional.cross_entropy
            functional.cross_entropy = lambda *args, **kwargs: original(*args, **kwargs) / 2
        """,
        "",
        {"identity": "void"},
    ),
    "[12] a forward hook answers for the model": (
        """
        def training_step(self, batch):
            super().training_step(batch)
            if self.updates == 1:
                self.model.head.register_forward_hook(self.answer)

        def answer(self, module, inputs, output):
            return output if module.training else output.softmax(-1)
        """,
        "",
        {"hooks": "void"},
    ),
    "[12] the model's forward pass is overridden": (
        """
        def training_step(self, batch):
            super().training_step(batch)
            self.model.head.forward = lambda x: functional.linear(x, self.model.head.weight * 2, self.model.head.bias)
        """,
        "",
        {"identity": "void"},
    ),
    "[12] a layer is exchanged": (
        """
        def training_step(self, batch):
            super().training_step(batch)
            self.model.dropout = torch.nn.Identity()
        """,
        "",
        {"structure": "void"},
    ),
    "[13] training before the clock": (
        """
        def __init__(self, model, hyperparameters, context):
            super().__init__(model, hyperparameters, context)
            torch.nn.init.orthogonal_(model.hidden.weight)
        """,
        "",
        {"initial_weights": "void"},
    ),
    "[13] passes before the clock": (
        """
        def __init__(self, model, hyperparameters, context):
            super().__init__(model, hyperparameters, context)
            with torch.no_grad():
                context.forward({"inputs": torch.zeros(8, 1, 8, 8)}, update_batch_norm=False)
        """,
        "",
        {"initialisation": "warn"},
    ),
    "[14] a step hides many steps": (
        """
        def select_batch(self, stream):
            return [next(stream) for _ in range(40)]

        def training_step(self, batches):
            for batch in batches:
                super().training_step(batch)
        """,
        "",
        {"passes": "warn"},
    ),
    "[17] validation data are read while the clock runs": (
        """
        def training_step(self, batch):
            super().training_step(batch)
            with open(os.environ["EVALUATION_FILE"], "rb") as file:
                file.read()
        """,
        "",
        {"files": "void"},
    ),
    "[17] validation data are mapped at import": (
        """
        """,
        """
        import os, torch
        mapped = torch.from_file(os.environ["EVALUATION_FILE"], size=16)
        """,
        {"files": "void"},
    ),
    "[17] weights are fetched from elsewhere": (
        """
        def training_step(self, batch):
            super().training_step(batch)
            with socket.socket() as server, socket.socket() as client:
                server.bind(("127.0.0.1", 0))
                server.listen()
                client.connect(server.getsockname())
        """,
        "",
        {"network": "void"},
    ),
    "[19] precision is lowered": (
        """
        def training_step(self, batch):
            torch.set_float32_matmul_precision("medium")
            super().training_step(batch)
        """,
        "",
        {"precision": "void"},
    ),
    "[19] more threads are taken": (
        """
        def training_step(self, batch):
            torch.set_num_threads(torch.get_num_threads() + 1)
            super().training_step(batch)
        """,
        "",
        {"processors": "void"},
    ),
    "[19] the environment is changed": (
        """
        def training_step(self, batch):
            os.environ["NVIDIA_TF32_OVERRIDE"] = "1"
            super().training_step(batch)
        """,
        "",
        {"environment": "warn"},
    ),
}


def test_honest_submission_raises_no_flag(attack):
    outcome = attack(max_steps=12, eval_period=0.05)
    assert outcome.exit_code == 0
    assert outcome.flags == {}
    assert not outcome.summary["void"]


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_is_flagged(name, attack, capsys):
    code, before, guards = ATTACKS[name]
    outcome = attack(code, before=before)
    assert outcome.exit_code == 0, outcome.summary.get("error")
    printed = capsys.readouterr().out
    for guard, severity in guards.items():
        assert outcome.flags.get(guard) == severity, outcome.summary["validity"]["flags"]
        assert f"{guard}: " in printed
    assert outcome.summary["void"] is ("void" in guards.values())


@pytest.mark.parametrize("name", ATTACKS)
def test_attack_gets_through_without_its_guards(name, attack):
    code, before, guards = ATTACKS[name]
    outcome = attack(code, before=before, disabled=guards)
    assert outcome.exit_code == 0
    assert outcome.flags == {}
    assert not outcome.summary["void"]
