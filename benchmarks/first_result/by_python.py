"""A first result in Python. Runs in a folder with digits_cnn.pt and digits.npz; PARED_URL names the service."""

import pared

client = pared.Client()
job = client.prune("digits_cnn.pt", "digits.npz", target={"params": 0.25}, retrain={"epochs": 3, "lr": 0.02})
job.wait()
job.download("small.pt")
