# A first result by one command. Runs in a folder with digits_cnn.pt and digits.npz; PARED_URL names the service.
set -eu
pared compress digits_cnn.pt --data digits.npz --target params=25% --epochs 3 --quiet -o small.pt
