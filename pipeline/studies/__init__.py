"""One study a forget set: Ray Tune and Optuna on the executors."""
