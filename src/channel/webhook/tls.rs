//! Whom to believe: the TLS configuration of the client.
//!
//! Guarantees: certificates are always verified, against Mozilla's authorities, those of the
//! system, and those that an operator names; there is no option to switch that off.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::{ClientConfig, RootCertStore};

/// Why the client cannot be built.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("ca_file {} cannot be read", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The file is not PEM.
    #[error("ca_file {} is not a PEM file with certificates", path.display())]
    NotPem {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: pem::Error,
    },
    /// The file has no certificate.
    #[error("ca_file {} contains no certificate", path.display())]
    Empty {
        /// The file.
        path: PathBuf,
    },
    /// A certificate is none, or rustls cannot be configured.
    #[error("the TLS client cannot be configured")]
    Rustls(#[from] rustls::Error),
}

/// The configuration, without protocols: hyper-rustls adds those.
pub(in crate::channel) fn client_config(ca_file: Option<&Path>) -> Result<ClientConfig, Error> {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    // What the system trusts is welcome, and not needed: a slim container has no such files.
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = ca_file {
        for certificate in certificates(path)? {
            roots.add(certificate)?;
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(config)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let unreadable = |source| Error::Unreadable { path: path.to_owned(), source };
    let pem = std::fs::read(path).map_err(unreadable)?;
    let certificates = CertificateDer::pem_slice_iter(&pem)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|source| Error::NotPem { path: path.to_owned(), source })?;
    if certificates.is_empty() {
        return Err(Error::Empty { path: path.to_owned() });
    }
    Ok(certificates)
}
