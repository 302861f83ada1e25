// What sigstore's own JavaScript packages make of a bundle. Arguments: a command, then files.
//   verify-key BUNDLE PUB         with a public key, no log wanted
//   verify-identity BUNDLE ROOT   with a certificate, against a trusted_root.json
//   sign STATEMENT KEY PUB        a bundle over an in-toto statement
// Prints the payload, or the bundle. Run from the folder that has node_modules.
import { createHash, createPrivateKey, createPublicKey, sign } from "node:crypto";
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";

const require = createRequire(process.cwd() + "/package.json");
const { bundleFromJSON, bundleToJSON } = require("@sigstore/bundle");
const { TrustedRoot } = require("@sigstore/protobuf-specs");
const { DSSEBundleBuilder } = require("@sigstore/sign");
const { toSignedEntity, toTrustMaterial, Verifier } = require("@sigstore/verify");

const [command, first, ...rest] = process.argv.slice(2);
const text = (path) => readFileSync(path, "utf8");
const hintOf = (key) => createHash("sha256").update(key.export({ type: "spki", format: "der" })).digest("base64");
const NO_ROOT = { tlogs: [], ctlogs: [], certificateAuthorities: [], timestampAuthorities: [] };

function verify(material, options) {
  const bundle = bundleFromJSON(JSON.parse(text(first)));
  const signer = new Verifier(material, options).verify(toSignedEntity(bundle));
  const payload = bundle.content.dsseEnvelope.payload.toString("utf8");
  console.log(JSON.stringify({ payload, identity: signer.identity ?? null }));
}

if (command === "verify-key") {
  const key = createPublicKey(text(rest[0]));
  const find = (hint) => {
    if (hint !== hintOf(key)) throw new Error(`no key is called ${hint}`);
    return { publicKey: key, validFor: () => true };
  };
  const nothing = { tlogThreshold: 0, ctlogThreshold: 0, timestampThreshold: 0 };
  verify(toTrustMaterial(NO_ROOT, find), nothing);
} else if (command === "verify-identity") {
  verify(toTrustMaterial(TrustedRoot.fromJSON(JSON.parse(text(rest[0])))), {});
} else if (command === "sign") {
  const [secret, key] = [createPrivateKey(text(rest[0])), createPublicKey(text(rest[1]))];
  const signer = {
    sign: async (data) => ({
      signature: sign("sha256", data, secret),
      key: { $case: "publicKey", hint: hintOf(key), publicKey: text(rest[1]) },
    }),
  };
  const builder = new DSSEBundleBuilder({ signer, witnesses: [], singleCertificate: true });
  const artifact = { data: readFileSync(first), type: "application/vnd.in-toto+json" };
  console.log(JSON.stringify(bundleToJSON(await builder.create(artifact))));
} else {
  throw new Error(`no command ${command}`);
}
