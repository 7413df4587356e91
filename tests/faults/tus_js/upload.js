// Uploads a file by tus-js-client and prints the upload's URL: node upload.js ENDPOINT FILE METADATA
const fs = require("node:fs")
const tus = require("tus-js-client")

const [endpoint, path, metadata] = process.argv.slice(2)

const upload = new tus.Upload(fs.createReadStream(path), {
  endpoint,
  metadata: JSON.parse(metadata),
  uploadSize: fs.statSync(path).size,
  retryDelays: Array(60).fill(500),
  onError(error) {
    console.error(error)
    process.exit(1)
  },
  onSuccess() {
    console.log(upload.url)
  },
})
upload.start()
