# A first result by curl. Runs in a folder with digits_cnn.pt and digits.npz; PARED_URL names the service.
set -eu
id() { python3 -c 'import json, sys; print(json.load(sys.stdin)["id"])'; }

model=$(curl -fsS -T digits_cnn.pt -X POST "$PARED_URL/v1/models?filename=digits_cnn.pt" | id)
data=$(curl -fsS -T digits.npz -X POST "$PARED_URL/v1/datasets?filename=digits.npz" | id)
job=$(curl -fsS "$PARED_URL/v1/jobs" -H 'Content-Type: application/json' -d '{
        "type": "prune", "model": "'"$model"'", "dataset": "'"$data"'",
        "target": {"params": 0.25}, "retrain": {"epochs": 3, "lr": 0.02}}' | id)
curl -fsSN "$PARED_URL/v1/jobs/$job/events" >events.txt
curl -fsS -o small.pt "$PARED_URL/v1/jobs/$job/artifacts/model.pt"
