//! `TenantService`: keeps tenants, and the keys by which clients are let in.

use std::sync::Arc;

use tonic::{Request, Response, Status};

use crate::domain::id::{KeyId, TenantId};
use crate::domain::key::{self, ApiKey, Scope};
use crate::domain::tenant::{self as domain_tenant, Tenant, TenantSpec};
use crate::domain::{Violations, endpoint};
use crate::store::Update;

use super::context::{Context, caller, check_etag, named_tenant, require_admin};
use super::convert::{self, tenant as convert_tenant};
use super::proto as pb;
use super::proto::tenant_service_server::TenantService;
use super::status::Failure;
use super::token::Binding;
use super::{Reason, paging};

/// Tenants, or keys, that are read at once.
const CHUNK: u64 = 250;
/// How often a change is tried anew, when somebody else was faster and the client does not mind.
const MAX_TRIES: u32 = 5;

/// The service.
#[derive(Clone)]
pub(super) struct Tenants(pub Arc<Context>);

impl Tenants {
    /// The tenant that an operator names.
    async fn named(&self, id: &str, field: &str) -> Result<Tenant, Failure> {
        let mut violations = Violations::new();
        convert::require(id, field, &mut violations);
        violations.or_ok(())?;
        let id = TenantId::parse(id).map_err(|_| Failure::of(Reason::TenantNotFound))?;
        self.0.existing_tenant(id).await
    }

    /// Whose keys a call is about: a tenant's, or the operators' when none is named.
    async fn owner(&self, tenant_id: &str, field: &str) -> Result<Option<TenantId>, Failure> {
        if tenant_id.is_empty() {
            return Ok(None);
        }
        Ok(Some(self.named(tenant_id, field).await?.id))
    }

    async fn create(&self, request: Request<pb::CreateTenantRequest>) -> Result<Tenant, Failure> {
        let message = request.into_inner().tenant.unwrap_or_default();
        let mut violations = Violations::new();
        let spec = convert_tenant::new_tenant(&message, &mut violations);
        let spec = validated(spec, &self.0.urls, violations)?;
        let now = self.0.now();
        let id = self.0.random(|random| TenantId::new(now, random));
        let tenant =
            Tenant { id, spec, unreadable: false, revision: 1, create_time: now, update_time: now };
        self.0.store.create_tenant(&tenant).await?;
        self.warn_of_mail(&tenant);
        Ok(tenant)
    }

    /// Tells operators of a contact who cannot get any mail.
    fn warn_of_mail(&self, tenant: &Tenant) {
        if !tenant.spec.primary_contact.is_empty() && !self.0.sends_mail {
            tracing::warn!(tenant.id = %tenant.id, "a tenant has a primary contact, and no mail can be sent: set smtp-url and mail-from");
        }
    }

    async fn get(&self, request: Request<pb::GetTenantRequest>) -> Result<Tenant, Failure> {
        let caller = caller(&request)?;
        if caller.principal.tenant_id().is_none() {
            require_admin(&caller)?;
        }
        let tenant_id = request.into_inner().tenant_id;
        let mut violations = Violations::new();
        let tenant_id = named_tenant(&caller, &tenant_id, "tenant_id", &mut violations)?;
        violations.or_ok(())?;
        self.0.existing_tenant(tenant_id).await
    }

    async fn list(
        &self,
        request: Request<pb::ListTenantsRequest>,
    ) -> Result<pb::ListTenantsResponse, Failure> {
        let request = request.into_inner();
        let mut violations = Violations::new();
        let size = convert::page_size(request.page_size, &mut violations);
        violations.or_ok(())?;
        let binding = Binding::new("ListTenants", "");
        let start: Option<TenantId> = paging::place(&request.page_token, &binding)?;
        let store = &self.0.store;
        let (tenants, next) = paging::gather(
            (size, CHUNK),
            start,
            |after, limit| store.list_tenants(after, limit),
            |tenant| tenant.id,
            convert_tenant::tenant_to_proto,
        )
        .await?;
        let next_page_token = paging::next_token(next, &binding)?;
        Ok(pb::ListTenantsResponse { tenants, next_page_token })
    }

    async fn update(&self, request: Request<pb::UpdateTenantRequest>) -> Result<Tenant, Failure> {
        let request = request.into_inner();
        let message = request.tenant.unwrap_or_default();
        let mask = request.update_mask.unwrap_or_default().paths;
        if message.id.is_empty() {
            return Err(self.judged_apart(&message, &mask).into());
        }
        for _ in 0..MAX_TRIES {
            let mut tenant = self.named(&message.id, "tenant.id").await?;
            check_etag(&message.etag, tenant.revision, tenant.create_time)?;
            let mut violations = Violations::new();
            let populated = |path: &str| convert_tenant::is_populated(&message, path);
            let selection = convert_tenant::FIELDS.select(&mask, populated, &mut violations);
            let mut spec = tenant.spec.clone();
            convert_tenant::update_tenant(&mut spec, &message, &selection, &mut violations);
            let urls = self.0.urls.keeping(&tenant.spec.webhook_url);
            spec = validated(spec, &urls, violations)?;
            // A URL that is set anew takes the place of one that could not be read.
            let mended = tenant.unreadable && selection.has("webhook_url");
            if spec == tenant.spec && !mended {
                return Ok(tenant);
            }
            tenant.spec = spec;
            tenant.unreadable &= !mended;
            tenant.revision += 1;
            tenant.update_time = self.0.now();
            if self.0.store.update_tenant(&tenant).await? == Update::Done {
                self.warn_of_mail(&tenant);
                return Ok(tenant);
            }
        }
        Err(Failure::of(Reason::EtagMismatch))
    }

    /// What is wrong with an update that does not say which tenant it changes.
    fn judged_apart(&self, message: &pb::Tenant, mask: &[String]) -> Violations {
        let mut violations = Violations::new();
        convert::require("", "tenant.id", &mut violations);
        let populated = |path: &str| convert_tenant::is_populated(message, path);
        let selection = convert_tenant::FIELDS.select(mask, populated, &mut violations);
        let mut found = Violations::new();
        // A masked URL stands for what is there.
        let webhook_url = message.webhook_url.clone();
        let mut spec = TenantSpec { webhook_url, ..TenantSpec::default() };
        convert_tenant::update_tenant(&mut spec, message, &selection, &mut found);
        if let Err(wrong) = spec.validated(&self.0.urls) {
            convert::merge(&mut found, &wrong);
        }
        selection.take_over("tenant", &found, &mut violations);
        violations
    }

    async fn delete(&self, request: Request<pb::DeleteTenantRequest>) -> Result<(), Failure> {
        let request = request.into_inner();
        let tenant = self.named(&request.tenant_id, "tenant_id").await?;
        check_etag(&request.etag, tenant.revision, tenant.create_time)?;
        if !request.force {
            let subscriptions = self.0.store.list_subscriptions(tenant.id, &[], None, 1).await?;
            if !subscriptions.items.is_empty() {
                return Err(Failure::of(Reason::TenantNotEmpty));
            }
        }
        let revision = (!request.etag.is_empty()).then_some(tenant.revision);
        match self.0.store.delete_tenant(tenant.id, revision, self.0.now()).await? {
            Update::Done => {
                self.0.auth.forget(|_, owner| owner == Some(tenant.id));
                (self.0.kick)();
                Ok(())
            }
            Update::Stale if revision.is_some() => Err(Failure::of(Reason::EtagMismatch)),
            Update::Stale => Err(Failure::of(Reason::TenantNotFound)),
        }
    }

    async fn create_key(
        &self,
        request: Request<pb::CreateApiKeyRequest>,
    ) -> Result<(ApiKey, String), Failure> {
        let message = request.into_inner().api_key.unwrap_or_default();
        let tenant_id = self.owner(&message.tenant_id, "api_key.tenant_id").await?;
        let now = self.0.now();
        let mut violations = Violations::new();
        let scopes = convert_tenant::scopes(&message.scopes, tenant_id, &mut violations);
        domain_tenant::check_name(&message.display_name, "api_key.display_name", &mut violations);
        if tenant_id.is_some() && scopes.contains(&Scope::Admin) {
            violations.add("api_key.scopes", "must not have admin: only operator keys can");
        }
        let expire_time = message.expire_time.as_ref();
        let expire_time = convert::timestamp(expire_time, "api_key.expire_time", &mut violations);
        if expire_time.is_some_and(|expiry| expiry <= now) {
            violations.add("api_key.expire_time", "must lie in the future");
        }
        violations.or_ok(())?;
        let (id, secret) = self.0.random(|random| (KeyId::new(now, random), key::generate(random)));
        let api_key = ApiKey {
            id,
            tenant_id,
            display_name: message.display_name,
            prefix: key::shown(&secret).to_owned(),
            scopes,
            create_time: now,
            expire_time,
            revoke_time: None,
            last_use_time: None,
        };
        self.0.store.create_key(&api_key, key::hash(&secret)).await?;
        Ok((api_key, secret))
    }

    async fn list_keys(
        &self,
        request: Request<pb::ListApiKeysRequest>,
    ) -> Result<pb::ListApiKeysResponse, Failure> {
        let request = request.into_inner();
        let mut violations = Violations::new();
        let size = convert::page_size(request.page_size, &mut violations);
        violations.or_ok(())?;
        let tenant_id = self.owner(&request.tenant_id, "tenant_id").await?;
        let binding = Binding::new("ListApiKeys", &request.tenant_id);
        let start: Option<KeyId> = paging::place(&request.page_token, &binding)?;
        let store = &self.0.store;
        let (api_keys, next) = paging::gather(
            (size, CHUNK),
            start,
            |after, limit| store.list_keys(tenant_id, after, limit),
            |key| key.id,
            convert_tenant::key_to_proto,
        )
        .await?;
        let next_page_token = paging::next_token(next, &binding)?;
        Ok(pb::ListApiKeysResponse { api_keys, next_page_token })
    }

    async fn revoke_key(
        &self,
        request: Request<pb::RevokeApiKeyRequest>,
    ) -> Result<ApiKey, Failure> {
        let request = request.into_inner();
        let mut violations = Violations::new();
        convert::require(&request.api_key_id, "api_key_id", &mut violations);
        violations.or_ok(())?;
        let not_found = || Failure::of(Reason::ApiKeyNotFound);
        let tenant_id = if request.tenant_id.is_empty() {
            None
        } else {
            Some(TenantId::parse(&request.tenant_id).map_err(|_| not_found())?)
        };
        let id = KeyId::parse(&request.api_key_id).map_err(|_| not_found())?;
        let revoked = self.0.store.revoke_key(tenant_id, id, self.0.now()).await?;
        self.0.auth.forget(|known, _| known == id);
        revoked.ok_or_else(not_found)
    }
}

/// `spec`, if neither the conversion nor the domain found anything.
fn validated(
    spec: TenantSpec,
    urls: &endpoint::Admission,
    mut violations: Violations,
) -> Result<TenantSpec, Failure> {
    match spec.validated(urls) {
        Ok(spec) => Ok(violations.or_ok(spec)?),
        Err(found) => {
            convert::merge(&mut violations, &found);
            Err(violations.into())
        }
    }
}

fn shown(tenant: Tenant) -> pb::Tenant {
    convert_tenant::tenant_to_proto(tenant)
}

#[tonic::async_trait]
impl TenantService for Tenants {
    async fn create_tenant(
        &self,
        request: Request<pb::CreateTenantRequest>,
    ) -> Result<Response<pb::CreateTenantResponse>, Status> {
        let tenant = Some(shown(self.create(request).await?));
        Ok(Response::new(pb::CreateTenantResponse { tenant }))
    }

    async fn get_tenant(
        &self,
        request: Request<pb::GetTenantRequest>,
    ) -> Result<Response<pb::GetTenantResponse>, Status> {
        let tenant = Some(shown(self.get(request).await?));
        Ok(Response::new(pb::GetTenantResponse { tenant }))
    }

    async fn list_tenants(
        &self,
        request: Request<pb::ListTenantsRequest>,
    ) -> Result<Response<pb::ListTenantsResponse>, Status> {
        Ok(Response::new(self.list(request).await?))
    }

    async fn update_tenant(
        &self,
        request: Request<pb::UpdateTenantRequest>,
    ) -> Result<Response<pb::UpdateTenantResponse>, Status> {
        let tenant = Some(shown(self.update(request).await?));
        Ok(Response::new(pb::UpdateTenantResponse { tenant }))
    }

    async fn delete_tenant(
        &self,
        request: Request<pb::DeleteTenantRequest>,
    ) -> Result<Response<pb::DeleteTenantResponse>, Status> {
        self.delete(request).await?;
        Ok(Response::new(pb::DeleteTenantResponse {}))
    }

    async fn create_api_key(
        &self,
        request: Request<pb::CreateApiKeyRequest>,
    ) -> Result<Response<pb::CreateApiKeyResponse>, Status> {
        let (api_key, secret) = self.create_key(request).await?;
        let api_key = Some(convert_tenant::key_to_proto(api_key));
        Ok(Response::new(pb::CreateApiKeyResponse { api_key, secret }))
    }

    async fn list_api_keys(
        &self,
        request: Request<pb::ListApiKeysRequest>,
    ) -> Result<Response<pb::ListApiKeysResponse>, Status> {
        Ok(Response::new(self.list_keys(request).await?))
    }

    async fn revoke_api_key(
        &self,
        request: Request<pb::RevokeApiKeyRequest>,
    ) -> Result<Response<pb::RevokeApiKeyResponse>, Status> {
        let api_key = Some(convert_tenant::key_to_proto(self.revoke_key(request).await?));
        Ok(Response::new(pb::RevokeApiKeyResponse { api_key }))
    }
}
